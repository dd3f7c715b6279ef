"""Which pool what waits is for, and how much that is. Pure.

Rules that this file guards:
- A task is for one pool whose workers could do it, for the first of its alternatives that any could do: the one with the fewest
  devices that it has no use for, of these the cheapest, of these the first in the settings.
- A gang is for no pool that may not have as many workers.
- What no pool could do is said, with the reason, and scales nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dtf_lightning.farm.rules.needs import CPU, MEMORY, Need, lacking, offered, quantised
from dtf_lightning.farm.rules.scaling.observation import share_of

UNKNOWN = 60.0
"""Seconds that a task is taken to last of which nobody knows."""
SHORTEST = 1.0


@dataclass(frozen=True, kw_only=True)
class PoolShape:
    """What one worker of a pool has."""

    name: str
    devices: dict[str, float]
    labels: tuple[str, ...] = ()
    cost: float = 0.0
    maximum: int = 1


@dataclass(frozen=True, kw_only=True)
class OtherWorker:
    """A worker of no pool that takes tasks."""

    devices: dict[str, float]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WaitingShape:
    """Tasks that wait and are alike."""

    needs: tuple[Need, ...]
    """Alternatives, the preferred one first."""
    gang: int = 1
    number: int = 1
    seconds: float = UNKNOWN
    """What all of them will take, one after the other on one worker."""
    oldest: float = 0.0
    """For how long the oldest has waited."""
    task: str = ""
    """Its id."""


@dataclass(frozen=True, kw_only=True)
class PoolLoad:
    """What waits for a pool; as the fields of `SeenPool`."""

    waiting: int = 0
    backlog: float = 0.0
    width: float = 0.0
    widest: float = 0.0
    oldest: float = 0.0
    beside: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Unserved:
    """Tasks that no pool could do."""

    task: str
    number: int
    reason: str


def loads_of(
    pools: Sequence[PoolShape], waiting: Iterable[WaitingShape], others: Sequence[OtherWorker]
) -> tuple[dict[str, PoolLoad], list[Unserved]]:
    """Return pool -> what waits for it, and what no pool could do."""
    found: dict[str, list[tuple[WaitingShape, Need, float]]] = {pool.name: [] for pool in pools}
    unserved = []
    for shape in waiting:
        chosen = _pool_for(pools, shape)
        if chosen is None:
            if not any(_worth(other, need, 1.0) for other in others for need in shape.needs):
                unserved.append(Unserved(task=shape.task, number=shape.number, reason=_why_not(pools, shape)))
            continue
        pool, need, share = chosen
        found[pool.name].append((shape, need, share))
    return {name: _load(shapes, others) for name, shapes in found.items()}, unserved


def _pool_for(pools: Sequence[PoolShape], shape: WaitingShape) -> tuple[PoolShape, Need, float] | None:
    for need in shape.needs:
        able = [
            (_unused(pool, need), pool.cost, place, pool, share)
            for place, pool in enumerate(pools)
            if shape.gang <= pool.maximum and (share := share_of(need, pool.devices, pool.labels)) is not None
        ]
        if able:
            *_, pool, share = min(able, key=lambda one: one[:3])
            return pool, need, share
    return None


def _unused(pool: PoolShape, need: Need) -> int:
    """How many kinds of devices, such as accelerators, a task would hold up without a use for them."""
    return sum(name not in (CPU, MEMORY) and not need.amounts.get(name) for name in pool.devices)


def _why_not(pools: Sequence[PoolShape], shape: WaitingShape) -> str:
    lacks = [
        (pool.name, min((lacking(need, pool.devices, pool.labels) for need in shape.needs), key=len)) for pool in pools
    ]
    name, missing = min(lacks, key=lambda one: len(one[1]), default=("", []))
    if not name:
        return "there is no pool"
    if not missing:
        return f"it needs {shape.gang} workers at once, and no pool that could do it may have as many"
    return f"the nearest pool, {name}, lacks {', '.join(missing)}"


def _load(shapes: list[tuple[WaitingShape, Need, float]], others: Sequence[OtherWorker]) -> PoolLoad:
    return PoolLoad(
        waiting=sum(shape.number for shape, _, _ in shapes),
        backlog=sum(max(shape.seconds, SHORTEST) * share * shape.gang for shape, _, share in shapes),
        width=sum(shape.number * shape.gang * share for shape, _, share in shapes),
        widest=max((shape.gang if shape.gang > 1 else share for shape, _, share in shapes), default=0.0),
        oldest=max((shape.oldest for shape, _, _ in shapes), default=0.0),
        beside=sum(max((_worth(other, need, share) for _, need, share in shapes), default=0.0) for other in others),
    )


def _worth(other: OtherWorker, need: Need, share: float) -> float:
    """How much another worker could do of such tasks at once, in worths of a pool's worker of which one takes this share."""
    if lacking(need, other.devices, other.labels):
        return 0.0
    if need.exclusive:
        return share
    fitting = [offered(other.devices.get(name, 0.0)) // wanted for name, wanted in quantised(need.amounts).items()]
    return share * min(fitting, default=1)
