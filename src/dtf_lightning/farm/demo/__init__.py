"""`dtf farm demo`: a real plan on a farm of this machine whose parts are killed and frozen, and a table of what became of it."""
