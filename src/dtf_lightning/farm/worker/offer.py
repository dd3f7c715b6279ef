"""What a machine offers to its farm: its profile, or less where its owner says so.

A profile takes seconds to find out, and is kept in the worker's folder until the machine is started anew: hardware and
drivers do not change meanwhile, and a worker that was killed comes back at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import __version__
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.worker.allotment import CPU
from dtf_lightning.farm.worker.profile import WorkerProfile, worker_profile
from dtf_lightning.whole_files import write_whole

MEMORY = "memory"
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a worker offers."""

    devices: Mapping[str, float]
    """Resource -> amount: `cpu` in cores, `memory` in MiB, accelerators by number."""
    names: Mapping[str, tuple[str, ...]]
    """Resource -> names of its devices; those under `cpu` are numbers of cores."""
    labels: tuple[str, ...]


def offer_of_this_machine(
    folder: Path,
    *,
    cpus: float | None = None,
    at_most: float | None = None,
    memory: float | None = None,
    labels: tuple[str, ...] = (),
) -> Offer:
    """Return what this machine, or this container, has; less where it is told to offer less.

    Args:
        folder: the worker's.
        cpus: cores; `None`: all that this process may use.
        at_most: cores beyond which it offers none, however many there are.
        memory: MiB; `None`: what the machine has beside a reserve, or what the container lets it have.
        labels: beside those of the profile.

    Raises `SettingsError` for what is not there.
    """
    profile = kept_profile(folder)
    devices = dict(profile.devices)
    for resource, wanted, unit in ((CPU, cpus, "cores"), (MEMORY, memory, "MiB of memory")):
        if wanted is None:
            continue
        there = devices.get(resource, 0.0)
        if not 0 < wanted <= there:
            raise SettingsError(f"cannot offer {wanted:g} {unit}: this machine lets the worker use {there:g}")
        devices[resource] = wanted
    if at_most is not None:
        devices[CPU] = min(at_most, devices.get(CPU, 0.0))
    return Offer(devices=devices, names=profile.device_names, labels=(*profile.labels, *labels))


def kept_profile(folder: Path) -> WorkerProfile:
    """Return the machine's profile, found out once for each start of the machine, Python and release."""
    path = _kept(folder)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(path.read_bytes())
        if kept["of"] == _of():
            return WorkerProfile.from_json(kept["profile"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    profile = worker_profile(folder)
    if "error" not in profile.hardware:
        keep_profile(folder, profile)
    return profile


def keep_profile(folder: Path, profile: WorkerProfile) -> None:
    """Keep a profile in a worker's folder, as that of this machine as long as it runs. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(_kept(folder), json.dumps({"of": _of(), "profile": profile.to_json()}).encode())


def _kept(folder: Path) -> Path:
    return folder / "profile.json"


def _of() -> list[str]:
    return [_boot(), sys.executable, __version__]


def _boot() -> str:
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
