"""`ResultsTail`: takes results as a coordinator's watch shows them, and writes them to DuckDB from a thread of its own.

Rules that this file guards:
- Whoever tells it of a change never waits. What it cannot hold (`MAX_WAITING`) it lets go, and reads etcd instead.
- Changes and readings of etcd are taken in the order in which they were told of. A reading happens after all that was
  told before it: results that the watch never showed (this coordinator was away, or its watch had lost its place) are in
  `done/`, or else in the archive, which is read after `done/` since it is written before `done/` is deleted.
- A batch is let go when it is written. Where disk, etcd or archive do not serve, it is written as soon as they do; until
  then `status` says what is wrong. Any other fault ends the thread, and `status` says so for ever.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.database.connection import PassingError
from dtf_lightning.errors import DtfError, ProtocolError
from dtf_lightning.etcd.store import KeyValue, Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.values import Envelope, FailedAttempt
from dtf_lightning.farm.results.rows import SeenFailure, SeenResult
from dtf_lightning.farm.results.store import FarmResults

log = logging.getLogger(__name__)

BATCH = 2_000
"""Changes of one transaction: a thousand rows take about as long as one."""
PATIENCE = 3.0
"""Seconds that the first change of a batch waits for company: a batch of one takes a hundredth of a second of CPU, as one of two
hundred. All of it is in etcd meanwhile, and who asks a question does not wait for it."""
MAX_WAITING = 200_000
"""Changes that wait in memory, at most: some minutes of a busy farm."""
PAUSE = 1.0
"""Seconds before what failed is tried again."""
BEHIND = 10.0
"""Seconds for which nothing could be written though something waits, after which that is a warning."""
PAGE = 10_000
READ_TIMEOUT = 120.0
"""Seconds for all results that etcd holds."""
CLOSE_TIMEOUT = 5.0


class Health(Enum):
    """How something is, in the words of the requirements."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, kw_only=True, slots=True)
class TailStatus:
    """How the tail is, and what it is at."""

    health: Health
    reason: str
    """One sentence."""
    waiting: int
    """Changes that are not written yet."""
    written: int
    """Changes that were written since the start."""
    last_written: float | None
    """When, in seconds since the epoch."""
    readings: int
    """How often all of `done/` was read."""
    unreadable: int
    """Values in etcd that this release cannot read."""


class _Read:
    """Stands in the queue where etcd is to be read."""


class ResultsTail:
    """Its methods may be called from any thread; `step` from one only.

    Args:
        results: where it writes; stays its owner's.
        store: etcd.
        read_archive: takes in what the archive has and the database has not; called after each reading of etcd.
    """

    def __init__(
        self,
        results: FarmResults,
        store: Store,
        keys: FarmKeys,
        *,
        read_archive: Callable[[], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._results = results
        self._store = store
        self._keys = keys
        self._read_archive = read_archive
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        # Under its lock:
        self._queue: deque[Change | _Read] = deque()
        self._in_hand: list[Change] | _Read | None = None
        self._hurry = 0
        """Callers that wait for what was told so far."""
        self._done = _Progress(since=self._clock.monotonic())
        self._problem = ""
        self._ended = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"dtf-farm-results {keys.farm}")

    # --- for the coordinator -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write from a thread of its own, until closed."""
        self._thread.start()

    def take(self, change: Change) -> None:
        """Note a change that the watch has shown. Of kinds other than results it takes nothing."""
        if change.kind is not Kind.DONE and not (change.kind is Kind.FAILED and change.after is not None):
            return
        with self._changed:
            if self._ended:
                return
            if len(self._queue) >= MAX_WAITING:
                log.warning("%d results wait to be written: they are let go, and read from etcd instead", MAX_WAITING)
                self._queue.clear()
                self._queue.append(_Read())
            self._queue.append(change)
            if len(self._queue) == 1 or len(self._queue) == BATCH:
                self._changed.notify_all()

    def read_again(self) -> None:
        """The watch begins, or begins anew: what it has not shown must be read."""
        with self._changed:
            if not self._ended:
                self._queue.append(_Read())
                self._changed.notify_all()

    def catch_up(self, timeout: float) -> bool:
        """Wait until all that was told before this call is written; whether it is. `timeout` in seconds."""
        with self._changed:
            wanted = self._done.count + self._num_waiting()
            self._hurry += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._done.count >= wanted or self._ended, timeout)
                return self._done.count >= wanted
            finally:
                self._hurry -= 1

    def status(self) -> TailStatus:
        """How it is."""
        now = self._clock.monotonic()
        with self._changed:
            waiting = self._num_waiting()
            health, reason = Health.HEALTHY, f"{waiting} changes wait"
            if self._ended and not (self._closing and not self._problem):
                health, reason = Health.CRITICAL, f"no result is written any more: {self._problem}"
            elif self._problem:
                health, reason = Health.CRITICAL, f"results wait to be written: {self._problem}"
            elif waiting and now - self._done.since > BEHIND:
                health = Health.WARNING
                reason = f"{waiting} changes wait, and nothing was written for {now - self._done.since:.0f} s"
            return TailStatus(
                health=health,
                reason=reason,
                waiting=waiting,
                written=self._done.written,
                last_written=self._done.last_written,
                readings=self._done.readings,
                unreadable=self._done.unreadable,
            )

    def close(self) -> None:
        """Write what waits, and end. Idempotent."""
        with self._changed:
            self._closing = True
            self._queue = deque(told for told in self._queue if not isinstance(told, _Read))
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    # --- for its thread ----------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Write one batch, or read etcd; whether there was anything to do. What fails stays in hand, for the next step."""
        with self._changed:
            if self._in_hand is None:
                self._in_hand = self._take_batch()
            in_hand = self._in_hand
            if in_hand is None:
                self._done.since = self._clock.monotonic()
                return False
        unreadable = 0
        if isinstance(in_hand, _Read):
            unreadable = self._read()
        else:
            self._write(in_hand)
        with self._changed:
            self._in_hand = None
            self._problem = ""
            self._done.note(in_hand, unreadable, self._clock)
            self._changed.notify_all()
        return True

    def _take_batch(self) -> list[Change] | _Read | None:
        batch: list[Change] = []
        while self._queue and len(batch) < BATCH:
            first = self._queue[0]
            if isinstance(first, _Read):
                if batch:
                    return batch
                self._queue.popleft()
                return first
            batch.append(first)
            self._queue.popleft()
        return batch or None

    def _write(self, changes: Iterable[Change]) -> None:
        now = self._clock.wall()
        results: list[SeenResult] = []
        failures: list[SeenFailure] = []
        forgotten: list[str] = []
        for change in changes:
            value = None if change.after is None else change.after.value
            if isinstance(value, Envelope):
                results.append(SeenResult(task=change.names[0], envelope=value, recorded=change.revision, seen=now))
            elif isinstance(value, FailedAttempt):
                failures += _failure(change.names, value)
            elif change.kind is Kind.DONE:
                forgotten.append(change.names[0])
        self._results.take_in(results, failures, forgotten)

    def _read(self) -> int:
        """Take in what etcd holds, then what the archive holds; how many values could not be read."""
        done = self._store.range(self._keys.folder(Kind.DONE), page_size=PAGE, timeout=READ_TIMEOUT)
        failed = self._store.range(
            self._keys.folder(Kind.FAILED), revision=done.revision, page_size=PAGE, timeout=READ_TIMEOUT
        )
        now = self._clock.wall()
        results: list[SeenResult] = []
        failures: list[SeenFailure] = []
        unreadable = 0
        for kv in (*done.kvs, *failed.kvs):
            names, value = self._decoded(kv)
            if isinstance(value, Envelope):
                results.append(SeenResult(task=names[0], envelope=value, recorded=kv.mod_revision, seen=now))
            elif isinstance(value, FailedAttempt):
                failures += _failure(names, value)
            else:
                unreadable += 1
        self._results.take_reading(results, failures)
        if self._read_archive is not None:
            self._read_archive()
        return unreadable

    def _decoded(self, kv: KeyValue) -> tuple[tuple[str, ...], object]:
        parsed = self._keys.parse(kv.key)
        try:
            return ((), None) if parsed is None else (parsed[1], decode(parsed[0], kv.value))
        except ProtocolError as error:
            log.warning("%s cannot be read, and stays in etcd: %s", kv.key, error)
            return (), None

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self.step()
                except (DtfError, OSError, *PassingError) as error:
                    self._wait_after(error)
        except BaseException as error:
            log.exception("results are not written any more")
            with self._changed:
                self._problem = f"{type(error).__name__}: {error}"
        finally:
            with self._changed:
                self._ended = True
                if not self._closing:
                    self._queue.clear()
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Wait for a batch; false when it is over."""
        with self._changed:
            if self._in_hand is None:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._done.since = self._clock.monotonic()
                self._changed.wait_for(
                    lambda: len(self._queue) >= BATCH or self._hurry or self._closing or _begins_with_read(self._queue),
                    PATIENCE,
                )
            return not self._closing or bool(self._queue) or (self._in_hand is not None and not self._problem)

    def _wait_after(self, error: Exception) -> None:
        with self._changed:
            if str(error) != self._problem:
                log.warning("results wait to be written: %s", error)
            self._problem = str(error) or type(error).__name__
            if self._closing:
                self._queue.clear()  # all of it is in etcd
            self._changed.wait_for(lambda: self._closing, PAUSE)

    def _num_waiting(self) -> int:
        in_hand = self._in_hand
        return len(self._queue) + (0 if in_hand is None else 1 if isinstance(in_hand, _Read) else len(in_hand))


@dataclass(kw_only=True, slots=True)
class _Progress:
    """What was done so far."""

    since: float
    """When something was done last, or began to wait; monotonic seconds."""
    count: int = 0
    """Changes and readings."""
    written: int = 0
    last_written: float | None = None
    readings: int = 0
    unreadable: int = 0

    def note(self, in_hand: list[Change] | _Read, unreadable: int, clock: Clock) -> None:
        self.since = clock.monotonic()
        self.last_written = clock.wall()
        if isinstance(in_hand, _Read):
            self.count += 1
            self.readings += 1
            self.unreadable = unreadable
        else:
            self.count += len(in_hand)
            self.written += len(in_hand)


def _failure(names: tuple[str, ...], failed: FailedAttempt) -> list[SeenFailure]:
    """The attempt that a key and its value tell of; nothing for a key that no farm has written."""
    task, number = names
    return [SeenFailure(task=task, number=int(number), failed=failed)] if number.isdecimal() else []


def _begins_with_read(queue: deque[Change | _Read]) -> bool:
    return bool(queue) and isinstance(queue[0], _Read)
