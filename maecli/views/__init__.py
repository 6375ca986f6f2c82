"""Display of results in a terminal."""
