"""What the record holds of the coordinators themselves: their terms, how their machines are, and which are disabled."""
