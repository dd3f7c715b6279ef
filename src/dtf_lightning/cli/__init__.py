"""The command line `dtf`: its parser, what the commands share, and the commands themselves."""
