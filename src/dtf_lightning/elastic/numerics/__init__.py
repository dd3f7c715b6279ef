"""The arithmetic of training that a changing world touches: learning rates, divergence, copies of a step."""
