"""Settings of a farm's processes: `coordinator.yaml` and `worker.yaml`, and what their keys mean."""
