"""`StopNews` notices in restart mode that workers have stopped apart: no agent compares their steps there.

Rules that this file guards:

* while all train, a batch costs a few additions: nobody writes to the store, and one thread sleeps in it;
* a worker that leaves the training loop tells rank 0, which tells the others where the first one stopped; a worker that
  begins a batch beyond tells rank 0 so, and one that goes on after all does the same;
* rank 0 decides (`rules/stops.py`) once workers have stood apart for some seconds, and tells all, who end themselves.

The messages are keys of the store on which the workers of a life have met, below the word of that life:
`said` counts messages to rank 0, `say/N` is the N-th, `news/R/N` the N-th to rank R.
"""

from __future__ import annotations

import atexit
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist

from dtf_lightning.elastic.rules.stops import MAX_PATIENCE, Place, first_stop, told_apart

log = logging.getLogger("dtf_lightning")

LOOK = timedelta(hours=1)
"""One wait for a message; then the next, because torch's waits must end."""
UNDER_WAY = 1.0
"""Seconds in which what a worker has just told reaches the others."""


class _Mail:
    """One worker's messages to rank 0 and from it, as keys of a store. Every method raises torch's errors.

    Args:
        prefix: the keys' beginning, which no other life uses.
        rank: this worker's rank.
        world_size: the number of workers.
    """

    def __init__(self, prefix: str, rank: int, world_size: int) -> None:
        self.rank = rank
        self.closed = False
        """Whether nothing more is received."""
        self._prefix, self._world_size = prefix, world_size
        self._next = 1
        """The number of the message that is received next."""
        self._num_spread = 0

    def tell(self, store: dist.Store, place: Place) -> None:
        """Tell rank 0 where this worker is."""
        number = store.add(f"{self._prefix}/said", 1)
        store.set(f"{self._prefix}/say/{number}", json.dumps({"rank": self.rank, "place": asdict(place)}))

    def spread(self, store: dist.Store, news: dict[str, Any]) -> None:
        """Tell all others, as rank 0."""
        self._num_spread += 1
        for rank in range(1, self._world_size):
            store.set(f"{self._prefix}/news/{rank}/{self._num_spread}", json.dumps(news))

    def receive(self, store: dist.Store, timeout: timedelta) -> dict[str, Any] | None:
        """Return the next message; `None` if there is none in time, and once this worker hears no more."""
        began = time.monotonic()
        try:
            store.wait([self._awaited()], timeout)
        except dist.DistStoreError:  # torch's word for a wait that took too long
            if time.monotonic() - began < timeout.total_seconds() / 2:
                raise
            return None
        if self.closed:
            return None
        message: dict[str, Any] = json.loads(store.get(self._awaited()))
        self._next += 1
        return message

    def wake(self, store: dist.Store) -> None:
        """End the wait of the thread that receives."""
        store.set(self._awaited(), "{}")

    def _awaited(self) -> str:
        to = "say" if self.rank == 0 else f"news/{self.rank}"
        return f"{self._prefix}/{to}/{self._next}"


class StopNews:
    """Tell the other workers of a life where this one stops, and hear where they do.

    Args:
        store: a connection for the main thread.
        connect: opens another one, for the thread that listens.
        prefix: the keys' beginning, which no other life uses.
        rank: this worker's rank.
        names: the workers' names, in rank order.
        generation: the number of their generation.
        on_apart: called in the listening thread once workers are known to stand apart for good, with what to tell people.
        patience: seconds that they may.
    """

    def __init__(
        self,
        store: dist.Store,
        connect: Callable[[], dist.Store],
        *,
        prefix: str,
        rank: int,
        names: Sequence[str],
        generation: int,
        on_apart: Callable[[str], object],
        patience: float = MAX_PATIENCE,
    ) -> None:
        self.apart: str | None = None
        """Which workers stand apart, for people; `None` while that is not known."""
        self.first_stop: int | None = None
        """How many places the worker had passed that stopped first; `None` while nobody has."""
        self.suspected = False
        """Whether workers stand apart, and may still come together."""
        self._mail = _Mail(prefix, rank, len(names))
        self._store = store
        self._told_apart = partial(told_apart, names=names, generation=generation)
        self._on_apart, self._patience = on_apart, patience
        self._passed = 0
        self._stopped = False
        self._listener = threading.Thread(target=self._listen, args=(connect,), daemon=True, name="dtf-stop-news")
        self._listener.start()
        atexit.register(self.close)  # a thread that comes out of torch while Python ends takes the process with it

    # --- the main thread ---------------------------------------------------------------------------------------------

    def passes(self) -> None:
        """Count a place that all workers of a life pass alike: at least one in each batch."""
        self._passed += 1
        if self._stopped or self._is_ahead():
            self._stopped = False
            _quietly(lambda: self._mail.tell(self._store, Place(passed=self._passed)))

    def stops(self, step: int, why: str) -> None:
        """Tell the others that this worker leaves the training loop after `step` optimizer steps, and why."""
        self._stopped = True
        _quietly(lambda: self._mail.tell(self._store, Place(passed=self._passed, step=step, stopped=why)))

    def wait(self, wait: Callable[[float], object]) -> None:
        """Wait until it is known whether a collective has failed because workers stand apart; not if nobody has stopped.

        `wait`: waits for so many seconds, or until `on_apart` was called or the worker is to stop.
        """
        if self._stopped or self.first_stop is not None:
            wait(UNDER_WAY)
            if self.suspected:
                wait(self._patience + UNDER_WAY)

    def close(self) -> None:
        """Hear nothing more. Idempotent."""
        if self._mail.closed:
            return
        self._mail.closed = True
        for _ in range(2):  # the listening thread may have come to its next message meanwhile
            if self._listener.is_alive():
                _quietly(lambda: self._mail.wake(self._store))
                self._listener.join(UNDER_WAY)
        atexit.unregister(self.close)

    def _is_ahead(self) -> bool:
        return self.first_stop is not None and self._passed > self.first_stop

    # --- the listening thread ----------------------------------------------------------------------------------------

    def _listen(self, connect: Callable[[], dist.Store]) -> None:
        _quietly(lambda: (self._decide if self._mail.rank == 0 else self._hear)(connect()))

    def _hear(self, store: dist.Store) -> None:
        while not self._mail.closed and self.apart is None:
            news = self._mail.receive(store, LOOK)
            if news is not None:
                self._take(store, news)

    def _take(self, store: dist.Store, news: dict[str, Any]) -> None:
        """Act on what rank 0 says."""
        if (apart := news.get("apart")) is not None:
            self.apart = apart
            log.error("%s", apart)
            self._on_apart(apart)
            return
        self.first_stop, self.suspected = news["first_stop"], news["suspected"]
        if self._is_ahead():  # this worker was ahead before it heard, and may be in a collective
            self._mail.tell(store, Place(passed=self._passed))

    def _decide(self, store: dist.Store) -> None:
        """Be the one that decides: rank 0."""
        places: dict[int, Place] = {}
        ends_at: float | None = None
        while not self._mail.closed:
            left = LOOK if ends_at is None else timedelta(seconds=ends_at - time.monotonic())
            said = self._mail.receive(store, left) if left > timedelta() else None
            if said is not None:
                places[said["rank"]] = Place(**said["place"])
            apart, first = self._told_apart(places), first_stop(places)
            if apart is not None and ends_at is not None and time.monotonic() >= ends_at:
                self._spread(store, {"apart": apart})
                return
            if (first, apart is not None) != (self.first_stop, self.suspected):
                ends_at = None if apart is None else ends_at or time.monotonic() + self._patience
                self._spread(store, {"first_stop": first, "suspected": apart is not None})

    def _spread(self, store: dist.Store, news: dict[str, Any]) -> None:
        """Tell all workers, this one, which may end by it, last."""
        self._mail.spread(store, news)
        self._take(store, news)


def _quietly(work: Callable[[], object]) -> None:
    """Do something with the store, which may be gone: then the life ends, and nobody needs what is told here."""
    try:
        work()
    except RuntimeError as error:
        log.debug("the workers' store does not answer: %s", error)
