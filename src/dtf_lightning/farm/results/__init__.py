"""Results of a farm beyond etcd: rows in DuckDB, made from what the watch shows, and an archive of Parquet files."""
