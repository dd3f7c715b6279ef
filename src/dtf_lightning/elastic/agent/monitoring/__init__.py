"""A node's metrics for Prometheus and traces for OpenTelemetry, made from its event logs as they grow."""
