"""Raw data of any common format, read by DuckDB."""
