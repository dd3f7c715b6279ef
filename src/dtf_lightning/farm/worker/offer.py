"""What a machine offers to its farm: how much of each resource, and the devices that are shared out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dtf_lightning.errors import SettingsError
from dtf_lightning.hardware.container import container_limits

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a worker offers."""

    devices: Mapping[str, float]
    """Resource -> amount: `cpu` in cores, `memory` in MiB."""
    names: Mapping[str, tuple[str, ...]]
    """Resource -> names of its devices; those under `cpu` are numbers of cores."""


def offer_of_this_machine(*, cpus: float | None = None, memory: float | None = None) -> Offer:
    """Return what this machine, or this container, has; less where it is told to offer less.

    Args:
        cpus: cores; `None`: all that this process may use.
        memory: MiB; `None`: what the machine has, or what the container lets it have.

    Raises `SettingsError` for what is not there.
    """
    limits = container_limits()
    cores = sorted(os.sched_getaffinity(0))
    there = min(float(len(cores)), limits.get("cpu_limit", len(cores)))
    total = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), limits.get("memory_limit", 1 << 62))
    if cpus is not None and not 0 < cpus <= len(cores):
        raise SettingsError(f"cannot offer {cpus:g} cores: this machine lets the worker use {len(cores)}")
    if memory is not None and not 0 < memory <= total / MEBIBYTE:
        raise SettingsError(f"cannot offer {memory:g} MiB of memory: this machine has {total // MEBIBYTE} MiB")
    devices = {"cpu": cpus if cpus is not None else there, "memory": memory or float(total // MEBIBYTE)}
    return Offer(devices=devices, names={"cpu": tuple(map(str, cores))})
