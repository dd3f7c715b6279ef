"""Files by which the parts of a farm are installed and kept running, for one target or another."""
