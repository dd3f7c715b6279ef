"""The commands of `dtf farm` that judge: slower or not, whose fault, since which commit, and what may fail meanwhile."""
