"""The entry points that torchrun loads, the choice of a mode, and the two rendezvous handlers."""
