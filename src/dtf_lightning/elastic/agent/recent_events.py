"""`RecentEvents` keeps a node's important events in etcd, where `dtf status` sees them while the run goes on.

One key for each node, under its lease: at most `MAX_EVENTS` of its last events, written at most once in `PAUSE` seconds.
What is older, or of nodes that are gone, is in the event logs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.run.keys import RunKeys, encode
from dtf_lightning.etcd.session import OWN_LEASE, Write, WriteOutcome
from dtf_lightning.etcd.store import Put
from dtf_lightning.events.registry import EventLogError

MAX_EVENTS = 20
MAX_TEXT = 300
"""The largest number of characters of an event."""
PAUSE = 1.0


class RecentEvents:
    """The recent events of one node. Used by the agent's loop only."""

    def __init__(self, node: str, keys: RunKeys, clock: Clock) -> None:
        self.deadline = Deadline()
        """The time at which `due` must be called at the latest."""
        self._key = keys.events(node)
        self._clock = clock
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._changed = False
        self._in_flight: Write | None = None
        self._next_at = 0.0

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in an event's JSON; an event that is of no importance, or that cannot be read, is ignored."""
        if event.get("kind") not in ELASTIC_EVENTS.important:
            return
        try:
            happened = ELASTIC_EVENTS.from_json(event)
        except EventLogError:
            return  # of another version's worker
        self._events.append({"at": happened.at, "text": happened.describe()[:MAX_TEXT]})
        self._changed = True

    def due(self, *, listed: bool) -> Iterator[Write]:
        """Yield the write of the events if it is due. `listed`: whether this node has its lease."""
        self.deadline.clear()
        if not self._changed or self._in_flight is not None or not listed:
            return
        now = self._clock.monotonic()
        if now < self._next_at:
            self.deadline.bring_forward(self._next_at)
            return
        self._changed, self._next_at = False, now + PAUSE
        put = Put(self._key, encode(list(self._events)), lease=OWN_LEASE)
        self._in_flight = Write(label="events", compares=(), puts=(put,))
        yield self._in_flight

    def written(self, write: Write, outcome: WriteOutcome) -> bool:
        """Take in the outcome of a write; return whether it was this object's."""
        if write is not self._in_flight:
            return False
        self._in_flight = None
        self._changed = self._changed or outcome is not WriteOutcome.APPLIED
        return True
