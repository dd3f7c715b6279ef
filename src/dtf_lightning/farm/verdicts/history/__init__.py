"""What a metric's history tells: its noise, points that stand out, steps, slow drifts, and steps of one commit together."""
