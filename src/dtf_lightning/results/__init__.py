"""What a run has left behind, read with DuckDB."""
