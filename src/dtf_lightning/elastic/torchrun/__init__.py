"""What torchrun loads: entry points, the choice of a mode, and the two rendezvous handlers."""
