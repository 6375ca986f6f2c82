"""Files, downloads, and text that is safe to print."""
