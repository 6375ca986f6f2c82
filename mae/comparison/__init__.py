"""Holding a checkpoint and our computation against independent references."""
