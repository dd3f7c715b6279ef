"""`dtf farm doctor`: what a machine, a settings file and a farm have that is wrong, each with what mends it."""
