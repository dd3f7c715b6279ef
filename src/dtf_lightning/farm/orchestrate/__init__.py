"""One job over several devices: how it is split into tasks, how far it is, and how their results become one; all pure."""
