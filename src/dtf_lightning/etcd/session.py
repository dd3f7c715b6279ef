"""`Session` is a client's session with etcd: a lease, records under it, one watch on a prefix, one thread that writes.

Rules that this file guards:

* its owner never waits for etcd: reading and writing happen in two threads of the session's own;
* a record is level-triggered: only its latest value is written, and it is written again under a new lease whenever the
  old one is lost (etcd was away);
* a transaction is tried once; who still wants it after an unknown outcome looks at the keys and submits it anew;
* closing deletes the records, in order behind every earlier write, and takes no longer than `CLOSE_TIMEOUT` a thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from dtf_lightning.errors import DtfError, StoreError, StoreUnavailable
from dtf_lightning.etcd.store import Compare, Delete, Lease, Put, RangeResult, Store, Watch, WatchEvent

log = logging.getLogger(__name__)

OWN_LEASE = -1
"""A value that stands in a `Put` for the session's lease, which may be another by the time the write is made."""
WRITE_TIMEOUT = 2.0
"""Seconds for one write; longer than an election of etcd's own leader at its defaults."""
RETRY_PAUSE = 0.2
CLOSE_TIMEOUT = 10.0


class WriteOutcome(Enum):
    """The outcome of a transaction."""

    APPLIED = "applied"
    REFUSED = "refused"  # a compare did not hold
    UNKNOWN = "unknown"  # etcd did not answer; it may or may not have been applied


@dataclass(frozen=True, kw_only=True)
class Write:
    """A transaction that is tried once."""

    label: str
    compares: tuple[Compare, ...]
    puts: tuple[Put | Delete, ...]


@dataclass(frozen=True)
class StoreSnapshot:
    """A fresh reading of all keys under the prefix: at the start, and when the watch has lost its place."""

    result: RangeResult


@dataclass(frozen=True)
class StoreChanged:
    """The events that the watch has seen since the last ones."""

    events: tuple[WatchEvent, ...]


@dataclass(frozen=True)
class WriteDone:
    """A submitted write was tried, with this outcome."""

    write: Write
    outcome: WriteOutcome


class Session:
    """A client's presence under a prefix of etcd's keys.

    Args:
        prefix: what is watched.
        name: who this is, for log lines.
        lease_ttl: seconds after which a silent client's records are gone.
        push: takes `StoreSnapshot`, `StoreChanged` and `WriteDone`, from this session's threads.
        while_away: what becomes of the owner's work while etcd does not answer, for the log line that says so.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        name: str,
        lease_ttl: float,
        push: Callable[[StoreSnapshot | StoreChanged | WriteDone], None],
        while_away: str,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._name = name
        self._lease_ttl = lease_ttl
        self._push = push
        self._lease: Lease | None = None
        self._watch: Watch | None = None
        self._outage = _Outage(name, while_away)
        self._changed = threading.Condition()
        # Under the condition's lock:
        self._records: dict[str, bytes] = {}
        self._unwritten: set[str] = set()
        """The keys of records whose latest value is not known to be in etcd."""
        self._writes: deque[Write] = deque()
        self._final: tuple[Write, ...] = ()
        self._closing = threading.Event()
        self._threads = (
            threading.Thread(target=self._follow, daemon=True, name="dtf-etcd-watch"),
            threading.Thread(target=self._publish, daemon=True, name="dtf-etcd-publish"),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def keep(self, key: str, value: bytes) -> None:
        """Keep this record under the session's lease, in the place of every earlier value that has not gone out yet."""
        with self._changed:
            self._records[key] = value
            self._unwritten.add(key)
            self._changed.notify_all()

    def submit(self, write: Write) -> None:
        """Try this transaction once, after the earlier ones; `WriteDone` tells its outcome."""
        with self._changed:
            self._writes.append(write)
            self._changed.notify_all()

    def close(self, final: Sequence[Write] = ()) -> None:
        """Try the writes of `final`, delete the records, give the lease back and end the threads. Idempotent.

        How the final writes went is pushed like that of the others, before this returns.
        """
        with self._changed:
            if self._closing.is_set():
                return
            self._final = tuple(final)
            self._closing.set()
            self._changed.notify_all()
            watch = self._watch
        if watch is not None:
            watch.cancel()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(CLOSE_TIMEOUT)

    # --- the watch's thread ------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow_one_watch()
            except StoreError as error:
                self._note_away(error)
                self._closing.wait(RETRY_PAUSE)

    def _follow_one_watch(self) -> None:
        snapshot = self._store.range(self._prefix, timeout=WRITE_TIMEOUT)
        self._push(StoreSnapshot(snapshot))
        watch = self._store.watch(self._prefix, start_revision=snapshot.revision + 1)
        with self._changed:
            self._watch = watch
            if self._closing.is_set():
                watch.cancel()
        try:
            while (batch := watch.get()) is not None:
                if batch:
                    self._push(StoreChanged(batch))
        finally:
            watch.cancel()

    # --- the publisher's thread --------------------------------------------------------------------------------------

    def _publish(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing.is_set() or self._unwritten or self._writes)
                closing = self._closing.is_set()
                records = {key: value for key, value in self._records.items() if key in self._unwritten}
                write = self._writes.popleft() if self._writes else None
            for key, value in records.items():
                self._put_record(key, value)  # before the goodbye too: it says why this client goes
            if closing:
                self._say_goodbye()
                return
            if write is not None:
                self._push(WriteDone(write, self._try(write)))

    def _put_record(self, key: str, value: bytes) -> None:
        try:
            if self._lease is None or self._lease.lost:
                self._lease = self._store.lease(self._lease_ttl, on_lost=self._on_lease_lost)
            lease = self._lease
            self._store.put(key, value, lease=lease.id, timeout=WRITE_TIMEOUT)
        except StoreError as error:
            if not isinstance(error, StoreUnavailable) and self._lease is not None:
                self._lease.abandon()  # most likely expired while etcd was away: ask for a new one
                self._lease = None
            self._note_away(error)
            self._closing.wait(RETRY_PAUSE)
            return
        self._outage.over()
        with self._changed:
            if self._records[key] is value and not lease.lost:
                self._unwritten.discard(key)

    def _on_lease_lost(self) -> None:
        """Take in that every key under the lease has vanished, or is about to. Called from the lease's thread."""
        with self._changed:
            self._unwritten = set(self._records)
            self._changed.notify_all()

    def _try(self, write: Write) -> WriteOutcome:
        lease = self._lease
        if lease is None or lease.lost:
            return WriteOutcome.UNKNOWN if any(_wants_lease(op) for op in write.puts) else self._txn(write, 0)
        return self._txn(write, lease.id)

    def _txn(self, write: Write, lease: int) -> WriteOutcome:
        ops = [replace(op, lease=lease) if isinstance(op, Put) and op.lease == OWN_LEASE else op for op in write.puts]
        try:
            result = self._store.txn(write.compares, ops, timeout=WRITE_TIMEOUT)
        except StoreError as error:
            self._note_away(error)
            return WriteOutcome.UNKNOWN
        self._outage.over()
        return WriteOutcome.APPLIED if result.succeeded else WriteOutcome.REFUSED

    def _say_goodbye(self) -> None:
        for write in self._final:
            self._push(WriteDone(write, self._try(write)))
        try:
            for key in self._records:
                self._store.delete(key, timeout=WRITE_TIMEOUT)
        except StoreError as error:
            log.warning(
                "%s: could not take its keys back on leaving (%s); they expire with the lease", self._name, error
            )
        if self._lease is not None:
            with contextlib.suppress(DtfError):
                self._lease.revoke()

    def _note_away(self, error: StoreError) -> None:
        if not self._closing.is_set():
            self._outage.noticed(error)


class _Outage:
    """A log of outages: one line for each of them, not one for each attempt."""

    def __init__(self, name: str, while_away: str) -> None:
        self._name = name
        self._while_away = while_away
        self._away = False

    def noticed(self, error: StoreError) -> None:
        if not self._away:
            self._away = True
            log.warning("%s: etcd does not answer (%s); %s", self._name, error, self._while_away)

    def over(self) -> None:
        if self._away:
            self._away = False
            log.info("%s: etcd answers again", self._name)


def _wants_lease(op: Put | Delete) -> bool:
    return isinstance(op, Put) and op.lease == OWN_LEASE
