"""Compare a checkpoint and our computation with independent references."""
