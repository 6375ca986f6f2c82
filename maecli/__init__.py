"""The command line of the masked autoencoder toolkit. It loads no torch until a command needs it."""
