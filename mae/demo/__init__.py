"""A page on this machine to try a model on: mask an image by hand and see what the model makes of it."""
