"""What a node shows to the world outside as its event logs grow: metrics for Prometheus, traces for OpenTelemetry."""
