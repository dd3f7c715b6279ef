"""`dtf demo`: a real run on this machine while workers join, leave and die, with a table of what that cost. Internal."""

NUM_TRAINING_SAMPLES = 1437
NUM_VALIDATION_SAMPLES = 360
LOG_EVERY_N_STEPS = 5
