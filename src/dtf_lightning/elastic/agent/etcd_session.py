"""An agent's session with etcd: its lease, its record, one watch on the run, one thread that writes.

Rules that this file guards:

* the loop never waits for etcd: reading and writing happen in two threads of their own;
* the node's record is level-triggered: only its latest version is written, and it is written again under a new lease
  whenever the old one is lost (etcd was away);
* a transaction is tried once; who still wants it after an unknown outcome looks at the keys and submits it anew;
* closing deletes the node's keys, in order behind every earlier write, and takes no longer than `CLOSE_TIMEOUT`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from dtf_lightning.elastic.agent.inbox import (
    OWN_LEASE,
    Push,
    StoreChanged,
    StoreSnapshot,
    Write,
    WriteDone,
    WriteOutcome,
)
from dtf_lightning.elastic.rules.membership import NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys, encode
from dtf_lightning.errors import DtfError, StoreError, StoreUnavailable
from dtf_lightning.etcd.store import Delete, Lease, Put, Store, Watch

log = logging.getLogger(__name__)

WRITE_TIMEOUT = 2.0
"""Seconds for one write; longer than an election of etcd's own leader at its defaults."""
RETRY_PAUSE = 0.2
CLOSE_TIMEOUT = 10.0


class Session:
    """One node's presence in a run.

    Args:
        lease_ttl: seconds after which a silent node is unlisted.
        push: takes `StoreSnapshot`, `StoreChanged` and `WriteDone`, from this session's threads.
    """

    def __init__(self, store: Store, keys: RunKeys, *, node: str, lease_ttl: float, push: Push) -> None:
        self._store = store
        self._keys = keys
        self._node = node
        self._lease_ttl = lease_ttl
        self._push = push
        self._changed = threading.Condition()
        self._record: NodeRecord | None = None
        self._record_written = False
        self._writes: deque[Write] = deque()
        self._lease: Lease | None = None
        self._closing = threading.Event()
        self._final: Sequence[Write] = ()
        self._watch: Watch | None = None
        self._away = False
        self._threads = (
            threading.Thread(target=self._follow, daemon=True, name="dtf-etcd-watch"),
            threading.Thread(target=self._publish, daemon=True, name="dtf-etcd-publish"),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def write_record(self, record: NodeRecord) -> None:
        """Have this written instead of every earlier record that has not gone out yet."""
        with self._changed:
            self._record, self._record_written = record, False
            self._changed.notify_all()

    def submit(self, write: Write) -> None:
        """Try this transaction once, behind the earlier ones; `WriteDone` tells how it went."""
        with self._changed:
            self._writes.append(write)
            self._changed.notify_all()

    def close(self, final: Sequence[Write] = ()) -> None:
        """Try `final`, delete the node's key, give the lease back and end the threads. Idempotent."""
        with self._changed:
            if self._closing.is_set():
                return
            self._final = final
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
        snapshot = self._store.range(self._keys.prefix, timeout=WRITE_TIMEOUT)
        self._push(StoreSnapshot(snapshot))
        watch = self._store.watch(self._keys.prefix, start_revision=snapshot.revision + 1)
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
                self._changed.wait_for(self._has_work)
                closing = self._closing.is_set()
                record = self._record if self._record is not None and not self._record_written else None
                write = self._writes.popleft() if self._writes else None
            if record is not None:
                self._put_record(record)  # before the goodbye too: it says why this node goes
            if closing:
                self._say_goodbye()
                return
            if write is not None:
                self._push(WriteDone(write, self._try(write)))

    def _has_work(self) -> bool:
        unwritten = self._record is not None and not self._record_written
        return self._closing.is_set() or unwritten or bool(self._writes)

    def _put_record(self, record: NodeRecord) -> None:
        try:
            if self._lease is None or self._lease.lost:
                self._lease = self._store.lease(self._lease_ttl, on_lost=self._on_lease_lost)
            lease = self._lease
            self._store.put(
                self._keys.node(self._node), encode(record.to_json()), lease=lease.id, timeout=WRITE_TIMEOUT
            )
        except StoreError as error:
            if not isinstance(error, StoreUnavailable) and self._lease is not None:
                self._lease.abandon()  # most likely expired while etcd was away: ask for a new one
                self._lease = None
            self._note_away(error)
            self._closing.wait(RETRY_PAUSE)
            return
        self._note_back()
        with self._changed:
            if self._record is record and not lease.lost:
                self._record_written = True

    def _on_lease_lost(self) -> None:
        """Called from the lease's thread: every key under it has vanished, or is about to."""
        with self._changed:
            self._record_written = False
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
        self._note_back()
        return WriteOutcome.APPLIED if result.succeeded else WriteOutcome.REFUSED

    def _say_goodbye(self) -> None:
        for write in self._final:
            self._try(write)
        try:
            self._store.delete(self._keys.node(self._node), timeout=WRITE_TIMEOUT)
        except StoreError as error:
            log.warning(
                "%s: could not take its keys back on leaving (%s); they expire with the lease", self._node, error
            )
        if self._lease is not None:
            with contextlib.suppress(DtfError):
                self._lease.revoke()

    # --- one line per outage, not per attempt ------------------------------------------------------------------------

    def _note_away(self, error: StoreError) -> None:
        if not self._away and not self._closing.is_set():
            self._away = True
            log.warning(
                "%s: etcd does not answer (%s); training goes on, the next rescale waits for etcd", self._node, error
            )

    def _note_back(self) -> None:
        if self._away:
            self._away = False
            log.info("%s: etcd answers again", self._node)


def _wants_lease(op: Put | Delete) -> bool:
    return isinstance(op, Put) and op.lease == OWN_LEASE
