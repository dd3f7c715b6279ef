"""The part of the command line `dtf` that is about farms: `dtf farm ...`."""
