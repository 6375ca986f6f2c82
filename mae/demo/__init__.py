"""A local web page for trying a model: mask an image by hand and see its reconstruction."""
