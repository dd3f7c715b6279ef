"""The records of tests that may fail for a while."""
