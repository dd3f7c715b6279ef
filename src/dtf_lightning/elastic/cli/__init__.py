"""The part of the command line `dtf` that is about elastic runs."""
