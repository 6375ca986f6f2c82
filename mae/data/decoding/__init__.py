"""Decoding image files to pixels."""
