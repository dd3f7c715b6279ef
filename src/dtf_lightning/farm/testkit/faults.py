"""What a storm does to a farm, as a pure function of its seed. `play_storm` in `storm.py` does it.

A storm deals its faults as one deals cards: every kind comes once before any comes again, so that a short storm has all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random


class FaultKind(Enum):
    """What can happen to a part of a farm; the value is for people."""

    KILL_LEADER = "leading coordinator killed"
    FREEZE_LEADER = "leading coordinator frozen"
    KILL_COORDINATOR = "coordinator killed"
    FREEZE_COORDINATOR = "coordinator frozen"
    KILL_MEMBER = "etcd member killed"
    FREEZE_MEMBER = "etcd member frozen"
    KILL_WORKER = "worker's process killed"
    LOSE_MACHINE = "worker, keeper and tasks killed"
    FREEZE_WORKER = "worker frozen"
    KILL_CROWD = "simulated workers killed"
    FREEZE_CROWD = "simulated workers frozen"
    CUT = "connections cut"
    SILENCE = "connections silent"


LASTS = {
    FaultKind.KILL_LEADER: (0.2, 2.0),
    FaultKind.FREEZE_LEADER: (2.5, 5.0),
    FaultKind.KILL_COORDINATOR: (0.2, 2.0),
    FaultKind.FREEZE_COORDINATOR: (0.3, 6.0),
    FaultKind.KILL_MEMBER: (0.3, 2.5),
    FaultKind.FREEZE_MEMBER: (0.3, 2.5),
    FaultKind.KILL_WORKER: (0.2, 2.0),
    FaultKind.LOSE_MACHINE: (0.2, 7.0),
    FaultKind.FREEZE_WORKER: (0.5, 9.0),
    FaultKind.KILL_CROWD: (0.2, 7.0),
    FaultKind.FREEZE_CROWD: (0.5, 9.0),
    FaultKind.CUT: (0.0, 0.3),
    FaultKind.SILENCE: (0.5, 6.0),
}
"""Seconds, from and to, after which a fault is undone: some are shorter than a lease (2 s), a silence (4 s) or a worker's
grace (4 s), and some are longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault."""

    at: float
    """Seconds since the storm's beginning."""
    kind: FaultKind
    which: int
    """Number of the part that it is to hit, counted modulo those that there are."""
    lasts: float
    """Seconds until it is undone."""


def plan_faults(seed: int, num_faults: int, *, pause: float = 1.0, longest: float = 9.0) -> tuple[Fault, ...]:
    """Return the faults of a storm, in their order.

    Args:
        pause: mean seconds between two faults.
        longest: seconds at which a fault is undone at the latest.
    """
    chance = Random(seed)
    faults: list[Fault] = []
    deck: list[FaultKind] = []
    at = 0.0
    for _ in range(num_faults):
        if not deck:
            deck = list(FaultKind)
            chance.shuffle(deck)
        kind = deck.pop()
        at += chance.uniform(0.5, 1.5) * pause
        lasts = min(chance.uniform(*LASTS[kind]), longest)
        faults.append(Fault(at=at, kind=kind, which=chance.randrange(1 << 16), lasts=lasts))
    return tuple(faults)
