"""Training tasks: each defines a loss, the trained parameters, the random inputs and the previews."""
