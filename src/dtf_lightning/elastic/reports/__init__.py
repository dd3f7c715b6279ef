"""Reports of runs: their event logs in a DuckDB database, the accounts of time and samples, pages and texts.

The logs are the truth; the database is a view of them that can be deleted and built again.
"""
