"""Mask images, reconstruct them and draw what came of it."""
