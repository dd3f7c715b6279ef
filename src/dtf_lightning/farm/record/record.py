"""`FarmRecord`: a coordinator's hand on the farm's record: every write goes through one of its lanes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from dtf_lightning.clock import Clock
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.guarded import Limits
from dtf_lightning.farm.record.keys import FarmKeys
from dtf_lightning.farm.record.lane import PATIENCE, Lane, LaneCounts, Pending, Told
from dtf_lightning.farm.record.values import NO_ATTEMPT, Attempt, Ending, Envelope
from dtf_lightning.farm.record.writes import Cancel, Cancellation, Cancelled, LaneName, Write

T = TypeVar("T")
R = TypeVar("R")

CANCEL_TRIES = 10
"""Each but the first is owed to an attempt that was changed just then."""


class FarmRecord:
    """Thread-safe. The store stays its owner's.

    Args:
        store: etcd.
        farm: the farm's name.
        deliver: as `Lane` takes it.
    """

    def __init__(
        self,
        store: Store,
        farm: str,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        deliver: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.keys = FarmKeys(farm)
        self._lanes = {name: Lane(store, name.value, limits=limits, clock=clock, deliver=deliver) for name in LaneName}

    def __enter__(self) -> FarmRecord:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the lanes' threads."""
        for lane in self._lanes.values():
            lane.start()

    def write(self, write: Write[T], *, timeout: float = PATIENCE) -> Future[T]:
        """Make a write; the future gives its verdict, once etcd has told it.

        It raises `StoreUnavailable` (not made within `timeout` seconds), `OutcomeUnknown` (nobody can tell), and what
        etcd says of a write that it rejects. Raises `StoreError` if the record is closed, `ProtocolError` for an
        envelope that is too large.
        """
        guarded = write.guarded(self.keys)
        return self._lanes[write.lane].submit(guarded, write.verdict, timeout=timeout)

    def answer(self, write: Write[T], *, timeout: float = PATIENCE) -> asyncio.Future[T]:
        """As `write`, for the event loop that runs here."""
        return _awaited([write], self._send, timeout, lambda values: values[0])

    def answers(self, writes: Sequence[Write[T]], *, timeout: float = PATIENCE) -> asyncio.Future[list[T]]:
        """As `answer`, for many, in their order. It raises what one of them raises, as soon as it does; the others are made all the same."""
        return _awaited(writes, self._send, timeout, list)

    def tell(
        self, write: Write[T], told: Callable[[T, Exception | None], object], *, timeout: float = PATIENCE
    ) -> None:
        """As `write`, for whoever is on the event loop to which this record delivers: `told` hears verdict or error there.

        It may be called from a lane's thread where the record delivers nowhere.
        """
        self._send(write, told, timeout)

    def _send(self, write: Write[Any], told: Told, timeout: float) -> Pending:
        return self._lanes[write.lane].send(write.guarded(self.keys), write.verdict, told, timeout=timeout)

    def cancel(
        self,
        task: str,
        envelope: Envelope,
        attempt: Attempt = NO_ATTEMPT,
        ending: Callable[[Attempt], Ending | None] = lambda _: None,
        *,
        timeout: float = PATIENCE,
    ) -> Future[Cancelled]:
        """End a task as `Cancel` does, again while its attempt is changed under our hands; at most `CANCEL_TRIES` times.

        Args:
            envelope: as far as known here. Attempt, revision and workers of later tries are those that etcd tells.
            attempt: the attempt as far as known here.
            ending: returns what an attempt at the task holds on its workers.
        """
        wanted: Future[Cancelled] = Future()
        wanted.set_running_or_notify_cancel()

        def attempted(envelope: Envelope, attempt: Attempt, tries: int) -> None:
            def told(tried: Future[Cancelled]) -> None:
                try:
                    verdict = tried.result()
                    if verdict.cancellation is not Cancellation.CHANGED or tries == 1:
                        wanted.set_result(verdict)
                        return
                    as_it_is = verdict.attempt or NO_ATTEMPT
                    number, workers = as_it_is.number, as_it_is.workers
                    again = replace(envelope, attempt=number, workers=workers, revision=verdict.seen)
                    attempted(again, as_it_is, tries - 1)
                except Exception as error:
                    wanted.set_exception(error)

            write = Cancel(task=task, envelope=envelope, ending=ending(attempt))
            self.write(write, timeout=timeout).add_done_callback(told)

        attempted(envelope, attempt, CANCEL_TRIES)
        return wanted

    def counts(self) -> dict[LaneName, LaneCounts]:
        """What each lane has done so far."""
        return {name: replace(lane.counts) for name, lane in self._lanes.items()}

    def num_waiting(self, lane: LaneName) -> int:
        """Writes that wait for the next transaction of a lane."""
        return self._lanes[lane].num_waiting

    def close(self) -> None:
        """Commit what waits, if etcd is there to take it, and end the lanes. What is left fails. Idempotent."""
        for lane in self._lanes.values():
            lane.close()


def _awaited(
    writes: Sequence[Write[T]],
    send: Callable[[Write[T], Told, float], Pending],
    timeout: float,
    made: Callable[[list[T]], R],
) -> asyncio.Future[R]:
    """Return a future of the running event loop for what becomes of some writes, which takes them along where it is cancelled.

    `asyncio.wrap_future` and `gather` do so too, and wake the loop once for each: where a lane tells of thousands on the loop
    itself, that was as much work as writing them.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    awaited: asyncio.Future[R] = loop.create_future()
    values: list[Any] = [None] * len(writes)
    left = len(writes)

    def tell(index: int, value: Any, error: Exception | None) -> None:
        nonlocal left
        values[index] = value
        left -= 1
        if awaited.done():
            return
        if error is not None:
            awaited.set_exception(error)
        elif not left:
            awaited.set_result(made(values))

    def told(index: int, value: Any, error: Exception | None) -> None:
        if threading.get_ident() == thread:
            tell(index, value, error)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(tell, index, value, error)

    pending = [send(write, partial(told, index), timeout) for index, write in enumerate(writes)]
    if not pending:
        awaited.set_result(made(values))

    def given_up(_: asyncio.Future[R]) -> None:
        if awaited.cancelled():
            for write in pending:
                write.cancel()

    awaited.add_done_callback(given_up)
    return awaited
