"""DuckDB for any product: a connection that waits its turn, a schema of ordered migrations, queries and exports."""
