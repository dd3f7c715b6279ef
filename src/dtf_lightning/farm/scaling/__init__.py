"""Providers of workers that a farm starts by need: processes here, a command, TorchX's schedulers, Kubernetes."""
