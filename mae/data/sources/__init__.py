"""Sources of images: folders, archives, Parquet tables, and URLs of these."""
