"""A run's folder, read back and shown: nothing here trains, and nothing in the folder is trusted."""
