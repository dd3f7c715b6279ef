"""`StopNews` notices in restart mode that workers have stopped apart: no agent compares their steps there.

Rules that this file guards:

* while all train, a batch costs a few additions: nobody writes to the store, and a thread looks into it every `LOOK`;
* a worker that leaves the training loop tells rank 0, which tells the others where the first one stopped; a worker that
  begins a batch beyond tells rank 0 so, and one that goes on after all does the same;
* rank 0 decides (`rules/stops.py`) once workers have stood apart for some seconds, and tells all, who end themselves.

The messages are keys of the store on which the workers of a life have met, below the word of that life:
`said` counts messages to rank 0, `say/N` is the N-th, `news/R/N` the N-th to rank R.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.collectives.watched_store import WatchedStore
from dtf_lightning.elastic.rules.stops import MAX_PATIENCE, Place, first_stop, told_apart

if TYPE_CHECKING:
    import torch.distributed as dist

log = logging.getLogger("dtf_lightning")

LOOK = 0.5
"""Seconds between two looks for a message. To sleep in torch's store is no better: where the store goes with its agent,
torch prints a stack of C++ in each worker that sleeps."""
UNDER_WAY = 4 * LOOK
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
        self._closed = threading.Event()
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

    def receive(self, connection: WatchedStore, timeout: float | None) -> dict[str, Any] | None:
        """Return the next message; `None` if there is none within `timeout` seconds, and once nothing more is received.

        Raises `ConnectionError` when the store is gone.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self.closed:
            if connection.gone():
                raise ConnectionError("the workers' store is gone")
            if connection.store.check([self._awaited()]):
                message: dict[str, Any] = json.loads(connection.store.get(self._awaited()))
                self._next += 1
                return message
            left = LOOK if end is None else min(LOOK, end - time.monotonic())
            if left <= 0:
                return None
            self._closed.wait(left)
        return None

    @property
    def closed(self) -> bool:
        """Whether nothing more is received."""
        return self._closed.is_set()

    def close(self) -> None:
        """Receive nothing more. Idempotent."""
        self._closed.set()

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
        connect: Callable[[], WatchedStore],
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
        self._mail.close()
        self._listener.join(UNDER_WAY)
        atexit.unregister(self.close)

    def _is_ahead(self) -> bool:
        return self.first_stop is not None and self._passed > self.first_stop

    # --- the listening thread ----------------------------------------------------------------------------------------

    def _listen(self, connect: Callable[[], WatchedStore]) -> None:
        def listen() -> None:
            with contextlib.closing(connect()) as connection:
                (self._decide if self._mail.rank == 0 else self._hear)(connection)

        _quietly(listen)

    def _hear(self, connection: WatchedStore) -> None:
        while self.apart is None and (news := self._mail.receive(connection, None)) is not None:
            self._take(connection, news)

    def _take(self, connection: WatchedStore, news: dict[str, Any]) -> None:
        """Act on what rank 0 says."""
        if (apart := news.get("apart")) is not None:
            self.apart = apart
            log.error("%s", apart)
            self._on_apart(apart)
            return
        self.first_stop, self.suspected = news["first_stop"], news["suspected"]
        if self._is_ahead():  # this worker was ahead before it heard, and may be in a collective
            self._mail.tell(connection.store, Place(passed=self._passed))

    def _decide(self, connection: WatchedStore) -> None:
        """Be the one that decides: rank 0."""
        places: dict[int, Place] = {}
        ends_at: float | None = None
        while not self._mail.closed:
            said = self._mail.receive(connection, None if ends_at is None else ends_at - time.monotonic())
            if said is not None:
                places[said["rank"]] = Place(**said["place"])
            apart, first = self._told_apart(places), first_stop(places)
            if apart is not None and ends_at is not None and time.monotonic() >= ends_at:
                self._spread(connection, {"apart": apart})
                return
            if (first, apart is not None) != (self.first_stop, self.suspected):
                ends_at = None if apart is None else ends_at or time.monotonic() + self._patience
                self._spread(connection, {"first_stop": first, "suspected": apart is not None})

    def _spread(self, connection: WatchedStore, news: dict[str, Any]) -> None:
        """Tell all workers, this one, which may end by it, last."""
        self._mail.spread(connection.store, news)
        self._take(connection, news)


def _quietly(work: Callable[[], object]) -> None:
    """Do something with the store, which may be gone: then the life ends, and nobody needs what is told here."""
    try:
        work()
    except (RuntimeError, OSError) as error:
        log.debug("the workers' store does not answer: %s", error)
