"""The commands of `dtf farm` for continuous integration."""
