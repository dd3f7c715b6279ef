"""The command line `dtf`: its parser, options and progress line that commands share, and commands of no product."""
