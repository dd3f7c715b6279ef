"""Reads a farm's record and follows its watch, in a thread of its own, for a `Mirror`.

Rules that this file guards:
- All kinds that are kept are read at one revision, and the watch begins at the next: no gap, and nothing twice.
- Where etcd has compacted the watch's place, all is read again.
- etcd being away is no fault: the watch goes on where it was, a reading is tried again. Any other fault is pushed, once,
  and is the end: a coordinator whose copy stands still must not go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dtf_lightning.errors import RevisionCompacted, StoreError, StoreUnavailable, WatchCompacted
from dtf_lightning.etcd.store import KeyValue, Store, Watch, WatchEvent
from dtf_lightning.farm.record.keys import LIVE, FarmKeys

log = logging.getLogger(__name__)

PAGE = 10_000
"""Keys per answer: a million take 27 s, in pages of 2,000 74 s."""
READ_TIMEOUT = 120.0
"""Seconds for one kind's records."""
TRIES = 5
RETRY_PAUSE = 0.2
CLOSE_TIMEOUT = 10.0


@dataclass(frozen=True)
class RecordRead:
    """Everything of the kinds that are kept, as of `revision`."""

    kvs: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True)
class RecordChanged:
    """What the watch has shown since, of every kind; whole revisions."""

    events: tuple[WatchEvent, ...]


@dataclass(frozen=True)
class FollowerFailed:
    """Nothing comes any more."""

    error: Exception


def read_record(store: Store, keys: FarmKeys) -> RecordRead:
    """Every kind that is kept, at one revision. Raises what the store raises.

    `RevisionCompacted` only if it was compacted in each of `TRIES` readings: they take seconds, compactions are a minute
    apart.
    """
    for _ in range(TRIES - 1):
        try:
            return _read_at_one_revision(store, keys)
        except RevisionCompacted as error:
            log.info("the record was compacted while it was read, read again: %s", error)
    return _read_at_one_revision(store, keys)


def _read_at_one_revision(store: Store, keys: FarmKeys) -> RecordRead:
    kvs: list[KeyValue] = []
    revision = 0
    for kind in LIVE:
        result = store.range(keys.folder(kind), revision=revision, page_size=PAGE, timeout=READ_TIMEOUT)
        revision = result.revision
        kvs += result.kvs
    return RecordRead(tuple(kvs), revision)


class Follower:
    """`push` takes `RecordRead`, `RecordChanged` and `FollowerFailed`, from this follower's thread, in their order."""

    def __init__(
        self, store: Store, keys: FarmKeys, push: Callable[[RecordRead | RecordChanged | FollowerFailed], None]
    ) -> None:
        self._store = store
        self._keys = keys
        self._push = push
        self._watch: Watch | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"dtf-farm-watch {keys.farm}")

    def start(self) -> None:
        """Begin with a reading."""
        self._thread.start()

    def close(self) -> None:
        """End the watch and the thread. Idempotent."""
        self._closing.set()
        with self._lock:
            watch = self._watch
        if watch is not None:
            watch.cancel()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    self._follow_one_watch()
                except WatchCompacted as error:
                    log.warning("the farm's watch has to begin anew: %s", error)
                except StoreUnavailable as error:
                    log.warning("the farm's record cannot be read, and is tried again: %s", error)
                    self._closing.wait(RETRY_PAUSE)
        except Exception as error:
            if self._closing.is_set() and isinstance(error, StoreError):
                return
            log.exception("the farm's record is not followed any more")
            self._push(FollowerFailed(error))

    def _follow_one_watch(self) -> None:
        read = read_record(self._store, self._keys)
        self._push(read)
        watch = self._store.watch(self._keys.prefix, start_revision=read.revision + 1)
        with self._lock:
            self._watch = watch
        if self._closing.is_set():
            watch.cancel()
        try:
            while (events := watch.get()) is not None:
                if events:
                    self._push(RecordChanged(events))
        finally:
            watch.cancel()
