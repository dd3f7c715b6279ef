"""`dtf demo`: a real run on this machine while workers join, leave and die, and an account of what that cost."""

NUM_TRAINING_SAMPLES = 1437
NUM_VALIDATION_SAMPLES = 360
LOG_EVERY_N_STEPS = 5
