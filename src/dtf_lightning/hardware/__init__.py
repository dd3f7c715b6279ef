"""What this machine is made of: its processor, memory, accelerators, and what a container lets it use."""
