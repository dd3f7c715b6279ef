"""Compares the nodes of a run: which hardware they have, and how fast their workers are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.observe.stragglers import LEAST_SHARE, SLOW

if TYPE_CHECKING:
    from dtf_lightning.elastic.reports.store import ResultsStore

COMPARED = (
    "cpu", "cores", "cores_physical", "cpu_limit", "memory", "memory_limit", "devices", "driver", "cuda", "rocm", "python",
    "torch", "nccl", "lightning", "dtf_lightning",
)  # fmt: skip
"""What of `describe_hardware` makes the nodes of a run mixed when it differs."""

MIN_LOOKS = 3
"""The number of looks without which a worker is not judged."""


def differences(hardware: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Describe how the nodes differ: "cores 8 on a, b; 4 on c"."""
    found = []
    for key in keys:
        nodes: dict[str, list[str]] = {}
        for node, has in hardware.items():
            nodes.setdefault(_value(has.get(key)), []).append(node)
        if len(nodes) > 1:
            values = "; ".join(f"{value} on {', '.join(names)}" for value, names in nodes.items())
            found.append(f"{key.replace('_', ' ')} {values}")
    return found


def _value(value: Any) -> str:
    if isinstance(value, list):  # devices
        names = [f"{one['name']} ({one['memory'] >> 20} MiB)" if "memory" in one else str(one["name"]) for one in value]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
    if isinstance(value, int) and value > 1 << 20:
        return f"{value >> 20} MiB"
    return "unknown" if value is None else str(value)


def paces(store: ResultsStore, run: str) -> list[dict[str, Any]]:
    """Return each worker's busy seconds in a step, and their ratio to the median worker's; over all looks."""
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for row in store.rows("SELECT data FROM events WHERE run = ? AND kind = 'workers_paced' ORDER BY time", [run]):
        look = json.loads(row["data"])
        usual = median_low(look["busy"].values())
        for worker, busy in look["busy"].items():
            seen.setdefault(worker, []).append((busy, usual, look["seconds"]))
    found = []
    for worker, looks in sorted(seen.items()):
        busy, usual, step = (median(values) for values in zip(*looks, strict=True))
        found.append(
            {
                "worker": worker,
                "busy": busy,
                "usual": usual,
                "step": step,
                "relative": median(mine / others if others else 1.0 for mine, others, _ in looks),
                "looks": len(looks),
            }
        )
    return found


def stragglers(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return those of `paces` for which the other workers wait."""
    return [
        dict(pace)
        for pace in found
        if pace["looks"] >= MIN_LOOKS
        and pace["relative"] > SLOW
        and pace["busy"] - pace["usual"] > LEAST_SHARE * pace["step"]
    ]
