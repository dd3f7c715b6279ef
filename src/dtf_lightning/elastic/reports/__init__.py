"""What happened to runs: their event logs in a DuckDB database, accounts of time and samples, reports.

The logs are the truth; the database is a view of them that can be deleted and built again.
"""
