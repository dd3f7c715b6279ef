"""`dtf watch`: shows what a run does right now, from etcd's keys and, where they can be read, its event logs.

etcd tells which nodes the run has and what it waits for; the logs tell what the workers do. Either may be missing: what
is known is shown, and what is missing is named.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from dtf_lightning.elastic.events import ELASTIC_EVENTS, StepsDone, WorkerRescaled
from dtf_lightning.elastic.rules.status import NodeStatus, Role
from dtf_lightning.elastic.run.keys import RunPhase
from dtf_lightning.elastic.run.status import RunStatus
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.events.registry import Event
from dtf_lightning.events.tail import EventTail

MAX_EVENTS = 200
MAX_LOSSES = 2000
FIRST_EVENTS = 20
"""The most events from before the first look that are shown."""
PLAIN_INTERVAL = 10.0
"""Seconds after which, without a terminal, a line is printed although nothing but the step has changed."""

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.,-=+*#"


@dataclass
class WorkerView:
    """What one worker has written to its log last."""

    step: int = 0
    steps_per_second: float = 0.0
    memory: int = 0


@dataclass
class WatchedRun:
    """A run as far as it has been seen; `look` brings it up to date."""

    run_id: str
    read: Callable[[], RunStatus]
    """Reads the run's status. Raises `DtfError` while etcd is away."""
    tail: EventTail | None = None
    status: RunStatus | None = None
    problem: str = ""
    """Why the status is out of date; empty while it is not."""
    since: float = 0.0
    """When the problem began, in monotonic seconds."""
    step: int = 0
    epoch: int = 0
    samples_per_second: float = 0.0
    """The samples per second of the whole world, as rank 0 saw them last."""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LOSSES))
    """The losses of rank 0, the oldest first."""
    workers: dict[str, WorkerView] = field(default_factory=dict)
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    """The last events: seconds since the epoch, and words."""
    new: list[tuple[float, str]] = field(default_factory=list)
    """The events of the last look."""
    _known: set[tuple[float, str]] = field(default_factory=set)
    """The events that were taken already: etcd shows the last ones again, and the logs hold them, too."""

    @property
    def over(self) -> bool:
        """Whether the run is over, so that nothing more will happen."""
        return self.status is not None and self.status.phase in (RunPhase.FINISHED, RunPhase.ABORTED)

    def look(self) -> None:
        """Read the status from etcd, and what is new in the logs."""
        found = self._follow_etcd()
        if self.tail is not None:
            for event in self.tail.look():
                text = self._take(event)
                if text:
                    found.append((event.at, text))
        fresh = [event for event in dict.fromkeys(found) if event not in self._known]
        first = not self._known
        self._known.update(fresh)
        self.new = sorted(fresh, key=lambda event: event[0])  # events of one moment stay in their order
        self.new = self.new[-FIRST_EVENTS:] if first else self.new
        self.events.extend(self.new)

    def _follow_etcd(self) -> list[tuple[float, str]]:
        before, problem = self.status, ""
        try:
            self.status = self.read()
        except SettingsError as error:  # there is no such run, yet or any more
            problem = str(error)
        except DtfError as error:
            problem = f"etcd is away: {error}"
        if problem and not self.problem:
            self.since = time.monotonic()
        changed = bool(problem) != bool(self.problem)
        self.problem = problem
        found = [problem or "etcd is back"] if changed and (before is not None or problem) else []
        if not problem and self.status is not None:
            found += differences(before, self.status)
        now = time.time()
        told = list(self.status.events) if self.status is not None and not problem else []
        return told + [(now, text) for text in found]

    def _take(self, event: Event) -> str:
        """Note what the event says; return it in words if people want to read it."""
        match event:
            case StepsDone():
                self.step, self.epoch, seconds = event.step, event.epoch, event.seconds or float("inf")
                self.workers[event.source] = WorkerView(event.step, event.steps / seconds, event.rss)
                if event.rank == 0:
                    self.samples_per_second = event.samples / seconds
                    self.losses += [event.loss] if event.loss is not None else []
            case WorkerRescaled(rank=0):
                self.step = event.step
                return f"{event.rescale}: {event.world_size} workers train again after {1000 * event.pause:.0f} ms"
            case _ if event.kind in ELASTIC_EVENTS.important:
                return event.describe()
        return ""

    def line(self) -> str:
        """Return the run's state in one line."""
        status = self.status
        if status is None:
            return f"run {self.run_id}: {self.problem}"
        parts = [f"run {self.run_id}: {phase_words(status)}"]
        if status.generation is not None:
            generation = status.generation
            parts.append(f"generation {generation.number} ({generation.kind})")
            parts.append(f"{len(generation.members)} nodes, {generation.world_size} workers")
        if self.step:
            parts.append(f"epoch {self.epoch}, step {self.step}")
        if self.losses:
            parts.append(f"loss {self.losses[-1]:.4g}")
        if self.samples_per_second:
            parts.append(f"{self.samples_per_second:.0f} samples/s")
        if self.problem:
            parts.append(f"{self.problem} (for {time.monotonic() - self.since:.0f} s)")
        return ", ".join(parts)

    def of_node(self, node: str) -> WorkerView | None:
        """Return the workers of a node together; `None` without their logs."""
        views = [view for source, view in self.workers.items() if source.rpartition("/")[0] == node]
        if not views:
            return None
        return WorkerView(
            max(view.step for view in views),
            max(view.steps_per_second for view in views),
            sum(view.memory for view in views),
        )


def phase_words(status: RunStatus) -> str:
    """Return the run's phase in words, with a pause called one."""
    return "starting" if status.phase is None else "paused" if status.paused else status.phase.value


def differences(before: RunStatus | None, now: RunStatus) -> list[str]:
    """Return in words what has changed between two looks and is no event."""
    found = []
    old = {node.node: node for node in before.nodes} if before is not None else {}
    if before is not None and now.phase in (RunPhase.RUNNING, None):
        found += [f"{name} is gone" for name in sorted(old.keys() - {node.node for node in now.nodes})]
        found += [f"{node.node}: {_says(node)}" for node in now.nodes if _role(old.get(node.node)) != _role(node)]
    if now.phase is not None and (before is None or now.phase is not before.phase):
        found.append(f"run {now.phase.value}" + (f": {now.reason}" if now.phase is not RunPhase.RUNNING else ""))
    elif before is not None and now.paused != before.paused:
        found.append(f"paused: {now.reason}" if now.paused else "no longer paused")
    return found


def _role(node: NodeStatus | None) -> tuple[Role, int] | None:
    return (node.role, node.incarnation) if node is not None else None


def _says(node: NodeStatus) -> str:
    return f"{node.role.value}, {node.state}" + (f" ({node.detail})" if node.detail else "")


def sparkline(values: list[float], width: int, blocks: str = BLOCKS) -> str:
    """Draw the newest values; each cell is the mean of equally many, on a scale from the lowest to the highest."""
    if not values or width < 1:
        return ""
    per_cell = -(-len(values) // width)
    cells = [values[i : i + per_cell] for i in range(len(values) % per_cell, len(values), per_cell)]
    means = [sum(cell) / len(cell) for cell in cells]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(blocks[min(len(blocks) - 1, int((mean - low) / span * len(blocks)))] for mean in means)


class Screen(Protocol):
    """A place where a run is shown."""

    def __enter__(self) -> Screen: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, run: WatchedRun) -> None:
        """Show the run; called after every look."""


class PlainScreen:
    """Prints lines, for pipes and log files: events as they come, and the state when it changed or after a while."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown = ""
        self._at = 0.0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, run: WatchedRun) -> None:
        for at, text in run.new:
            self._print(at, text)
        line, now = run.line(), time.monotonic()
        head = line.partition(", epoch")[0] if not run.problem else run.problem
        if head != self._shown or now - self._at >= PLAIN_INTERVAL or run.over:
            self._print(time.time(), line)
            self._shown, self._at = head, now

    def _print(self, at: float, words: str) -> None:
        print(f"{time.strftime('%H:%M:%S', time.localtime(at))} {words}", file=self._out, flush=True)


def watch(run: WatchedRun, screen: Screen, *, interval: float) -> bool:
    """Show the run until it is over; return whether it came to a good end. Ctrl-C ends it with `KeyboardInterrupt`."""
    with screen:
        while True:
            run.look()
            screen.show(run)
            if run.over:
                return run.status is not None and run.status.phase is RunPhase.FINISHED
            time.sleep(interval)
