"""What a scheduler is told, and what it answers. Pure.

Rules of the door:
- Only what the record shows changes a scheduler's state: tasks that are ready, placed and gone, workers that offer
  themselves and go. `decide` only promises: what it has returned counts as taken until `task_placed`, `task_gone` or
  `placement_refused` says what became of it.
- A scheduler reads no clock and is deterministic: the same calls give the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dtf_lightning.farm.rules.needs import DEFAULT_NEED, Need
from dtf_lightning.farm.rules.reserving.times import Held


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyTask:
    """A task whose dependencies are met."""

    task: str
    project: str = "default"
    """Whose share it counts against."""
    plan: str = ""
    """Tasks of one plan count as submitted together."""
    priority: int = 0
    """A higher number goes first."""
    submitted: float = 0.0
    """Seconds since the epoch."""
    sequence: int = 0
    """Decides between equals: the revision at which the record accepted it."""
    needs: tuple[Need, ...] = (DEFAULT_NEED,)
    """Alternatives, the preferred one first; at least one."""
    gang: int = 1
    """How many workers it takes at once; each gives the chosen need."""
    expected: float | None = None
    """Seconds that it is expected to take, where history knows."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Device class (`rules.watching.devices`) -> how many times as fast it is there, where history knows; elsewhere its
    workers' own speed counts."""
    excluded: tuple[str, ...] = ()
    """Workers to avoid, unless no other is left that could do it."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Name of a licence -> how many of it are held while it runs."""
    near: tuple[str, ...] = ()
    """Digests that it would like to find in its worker's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOffer:
    """A worker, with what it offers in all, whatever is taken of it now."""

    worker: str
    devices: Mapping[str, float]
    """Resource -> amount."""
    labels: tuple[str, ...] = ()
    accepting: bool = True
    """`False` for one that is cordoned or draining: what runs there goes on, nothing more comes."""
    cost: float = 1.0
    """Between capable workers the cheaper goes first."""
    speed: float = 1.0
    cached: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A task, the workers that it goes to, and which of its needs each of them gives."""

    task: str
    workers: tuple[str, ...]
    alternative: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A worker, and what of it is free."""

    total: Mapping[str, int]
    """Resource -> thousandths."""
    free: Mapping[str, int]
    labels: frozenset[str] = frozenset()
    accepting: bool = True
    held_for: int | None = None
    """The kind of tasks (`Scheduler.kind_of`) for which it is held free; `None`: for nobody."""


class Scheduler(Protocol):
    """Decides which task goes where."""

    def task_ready(self, task: ReadyTask) -> None:
        """A task can be placed: a new one, or one that comes back after an attempt that failed."""
        ...

    def task_placed(self, ready: ReadyTask, workers: Sequence[str], alternative: int) -> None:
        """The record shows where a task is: as we decided it, or as an earlier leader did."""
        ...

    def task_gone(self, task: str) -> None:
        """A task has ended. Unknown ones are passed over."""
        ...

    def placement_refused(self, task: str) -> None:
        """A promise could not be written: what was promised is free again, and the task is ready."""
        ...

    def is_placed(self, task: str) -> bool:
        """Whether a task has its workers, or was promised some."""
        ...

    def worker_offers(self, offer: WorkerOffer) -> None:
        """A worker is there, or offers something else than before."""
        ...

    def worker_gone(self, worker: str) -> None:
        """A worker is not there any more. What ran there stays placed until the record says more."""
        ...

    def hold(self, worker: str, held: Held | None) -> None:
        """People have reserved a worker, which need not be there yet; `None`: they have not any more."""
        ...

    def project(self, name: str, weight: float) -> None:
        """A project's share is proportional to its weight; that of one that was never named is 1."""
        ...

    def licences(self, totals: Mapping[str, int]) -> None:
        """How many of each licence there are, in the place of what was told before."""
        ...

    def first_waiting(self, at_most: int) -> list[str]:
        """Return the tasks that are ready, have no worker and could have one, in the order of their ranks."""
        ...

    def kind_of(self, task: str) -> int | None:
        """Return the same number for waiting tasks that ask for the same; `None` for one that does not wait."""
        ...

    def seats(self) -> dict[str, Seat]:
        """Return what is free of each worker that is there."""
        ...

    def decide(self, at_most: int, now: float) -> list[Placement]:
        """Return up to `at_most` placements. `now`: seconds since the epoch."""
        ...

    def explain(self, task: str, now: float) -> str:
        """Say in one sentence why a ready task is not placed."""
        ...
