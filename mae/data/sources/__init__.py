"""Where images come from: folders, archives, Parquet tables, URLs."""
