"""The statistics of verdicts: whether a program became slower, how sure that is, and whose fault a red result is; all pure."""
