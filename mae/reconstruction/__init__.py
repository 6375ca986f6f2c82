"""Mask images, reconstruct them and draw the result."""
