"""Reads run folders, whose contents are not trusted, and makes reports."""
