"""What kind of machine a worker is: its device class, a few words by which results of like machines stand together. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_EVERYWHERE = ("cpu", "memory", "disk")
"""Resources that every machine has: they tell none from another."""


def device_class(devices: Mapping[str, float], labels: Collection[str]) -> str:
    """Return a worker's device class: its accelerators and other devices, or else `cpu`, and its labels.

    Args:
        devices: resource -> how much of it.
        labels: what tasks may ask for.
    """
    special = sorted(name for name, amount in devices.items() if amount > 0 and name not in _EVERYWHERE)
    return ", ".join([*(special or ["cpu"]), *sorted(set(labels))])
