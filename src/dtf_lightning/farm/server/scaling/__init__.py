"""The leader scales pools of workers: what it sees of them, what it does, and what is told of that."""
