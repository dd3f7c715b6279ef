"""The arithmetic of training that depends on the world size: learning rates, divergence, copies of a step."""
