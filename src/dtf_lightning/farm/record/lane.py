"""A lane: guarded writes that commit together, one transaction at a time (group commit).

Rules that this file guards:
- What came while the last transaction was under way goes with the next one; nothing waits for company.
- An answer is given only for what etcd has said. A write whose answer was lost is tried again until it is answered or
  its time is over; its guard makes that safe, and `Outcome.unsure` says that it happened.
- A write that etcd rejects (too large, a lease that is gone) fails alone: its batch is halved until it is by itself.
- Nothing in a write is made anew for another try. A fence that was bound when the decision was made stays what it was,
  however long etcd was away.
- A fault of this file ends the lane: all that wait are told, and nothing more is accepted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import AuthenticationFailed, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.guarded import Batch, Guarded, Limits, Outcome, Place

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_TIMEOUT = 2.0
"""Seconds for one transaction; longer than an election of etcd's own leader at its defaults."""
PATIENCE = 30.0
"""Seconds for which a write is tried where its submitter names no other number."""
LOOK_AHEAD = 1000
"""Writes that wait for a later batch, at which no more are looked at for this one."""
CLOSE_TIMEOUT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.3


@dataclass(kw_only=True)
class LaneCounts:
    """What a lane has done since it was made."""

    batches: int = 0
    """Transactions that etcd has answered."""
    applied: int = 0
    refused: int = 0
    """Writes whose guard did not hold."""
    rejected: int = 0
    """Writes that etcd would not take."""
    lost_answers: int = 0
    """Transactions whose answer did not come."""
    outages: int = 0
    """Transactions for which no etcd was to be had."""


Told = Callable[[Any, Exception | None], object]
"""Hears what became of a write: its verdict, or why there is none."""


@dataclass(eq=False, slots=True)
class Pending:
    """A write with who waits for it."""

    guarded: Guarded
    verdict: Callable[[Outcome], Any]
    deadline: float
    told: Told
    future: Future[Any] | None = None
    """Where somebody waits by one."""
    claimed: bool = False
    """It has been taken at least once: nobody can cancel it any more."""
    unsure: bool = False
    given_up: bool = False
    answered: bool = False

    def cancel(self) -> None:
        """Let it be, if it has not been taken yet. `told` is not called then."""
        self.given_up = True

    def claim(self) -> bool:
        """Whether somebody still wants it; from now on it cannot be cancelled."""
        if not self.claimed:
            self.claimed = not self.given_up and (self.future is None or self.future.set_running_or_notify_cancel())
        return self.claimed

    def answer(self, answer: Outcome | Exception) -> None:
        """Tell what became of it. What a listener raises is logged: the others are told all the same."""
        self.answered = True
        value, error = None, answer if isinstance(answer, Exception) else None
        if not isinstance(answer, Exception):
            try:
                value = self.verdict(answer)
            except Exception as fault:
                error = fault
        try:
            self.told(value, error)
        except Exception:
            log.exception("%s: nobody took what became of it", self.guarded.label)


class Lane:
    """One queue, and with `start` one thread, that commits to a store.

    Args:
        store: where to.
        name: of the thread, and for log lines.
        deliver: runs a function that completes the futures of a batch. Where they belong to an event loop that is its
            `call_soon_threadsafe`: one call for a batch, not one for each write.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        deliver: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.counts = LaneCounts()
        self._store = store
        self._name = name
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._deliver = deliver or _at_once
        self._changed = threading.Condition()
        # Under the condition's lock:
        self._waiting: deque[Pending] = deque()
        self._closing = False
        self._fault: BaseException | None = None
        # Of whoever calls `step`:
        self._in_hand: list[Pending] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"dtf-lane {name}")

    def start(self) -> None:
        """Commit from a thread of the lane's own, until closed."""
        self._thread.start()

    def submit(self, guarded: Guarded, verdict: Callable[[Outcome], T], *, timeout: float = PATIENCE) -> Future[T]:
        """Make this write. The future gives `verdict` of its outcome, and may be cancelled until the write is taken.

        It raises `StoreUnavailable` if the write was not made within `timeout` seconds, `OutcomeUnknown` if nobody can
        tell, and what etcd says of a write that it rejects. Raises `StoreError` if the lane is closed.
        """
        future: Future[T] = Future()

        def told(value: T, error: Exception | None) -> None:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._enqueue(Pending(guarded, verdict, self._clock.monotonic() + timeout, told, future))
        return future

    def send(
        self, guarded: Guarded, verdict: Callable[[Outcome], Any], told: Told, *, timeout: float = PATIENCE
    ) -> Pending:
        """As `submit`, for whoever needs no future, which costs as much as all else here. `told` is called where `deliver` does it."""
        return self._enqueue(Pending(guarded, verdict, self._clock.monotonic() + timeout, told))

    @property
    def num_waiting(self) -> int:
        """Writes that no transaction has taken yet."""
        return len(self._waiting)

    def step(self) -> bool:
        """Commit one batch of what waits. Whether etcd answered; what it did not answer waits again, in front."""
        self._in_hand = self._take()
        if not self._in_hand:
            return True
        unanswered = self._commit(self._in_hand)
        with self._changed:
            self._waiting.extendleft(reversed(unanswered))
            self._in_hand = []
            late = self._expired() if unanswered else []
        self._fail_late(late)
        return not unanswered

    def close(self) -> None:
        """Commit what waits, if etcd is there to take it, and end. What is left fails. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if not self._thread.is_alive():
            self._fail_all("its lane was closed")
        elif threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    def _enqueue(self, waiting: Pending) -> Pending:
        with self._changed:
            if self._closing:
                raise StoreError(f"{waiting.guarded.label}: the lane {self._name!r} is closed{_because(self._fault)}")
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting

    # --- one batch ---------------------------------------------------------------------------------------------------

    def _take(self) -> list[Pending]:
        batch = Batch(self._limits)
        taken: list[Pending] = []
        later: list[Pending] = []
        late: list[Pending] = []
        now = self._clock.monotonic()
        with self._changed:
            while self._waiting and len(later) < LOOK_AHEAD:
                waiting = self._waiting.popleft()
                if waiting.deadline <= now:
                    late.append(waiting)
                    continue
                if not waiting.claimed and (
                    waiting.given_up or (waiting.future is not None and waiting.future.cancelled())
                ):
                    continue
                place = batch.offer(waiting.guarded)
                if place is Place.FULL:
                    self._waiting.appendleft(waiting)
                    break
                (taken if place is Place.IN else later).append(waiting)
            self._waiting.extendleft(reversed(later))
        self._fail_late(late)
        return [waiting for waiting in taken if waiting.claim()]

    def _commit(self, batch: Sequence[Pending]) -> list[Pending]:
        """Try it once. Returns those that etcd has not answered, in order."""
        if not batch:
            return []
        try:
            result = self._store.txn([], [w.guarded.transaction() for w in batch], timeout=CALL_TIMEOUT)
        except OutcomeUnknown as error:
            log.info("lane %s: %s", self._name, error)
            self.counts.lost_answers += 1
            for waiting in batch:
                waiting.unsure = True
            return list(batch)
        except StoreUnavailable as error:
            log.info("lane %s: %s", self._name, error)
            self.counts.outages += 1
            return list(batch)
        except StoreError as error:
            return self._rejected(batch, error)
        self.counts.batches += 1
        answers = []
        for waiting, nested in zip(batch, result.nested, strict=True):
            found = tuple(kvs[0] if kvs else None for kvs in nested.gets)
            outcome = Outcome(applied=nested.succeeded, revision=result.revision, found=found, unsure=waiting.unsure)
            self.counts.applied += outcome.applied
            self.counts.refused += not outcome.applied
            answers.append((waiting, outcome))
        self._complete(answers)
        return []

    def _rejected(self, batch: Sequence[Pending], error: StoreError) -> list[Pending]:
        """One of them is to blame, and only alone it says so; unless it is etcd that takes nothing from us."""
        if len(batch) == 1 or isinstance(error, AuthenticationFailed | StoreFull):
            self.counts.rejected += len(batch)
            self._complete([(waiting, error) for waiting in batch])
            return []
        half = len(batch) // 2
        unanswered = self._commit(batch[:half])
        if unanswered:  # the second half must not overtake the first
            return unanswered + list(batch[half:])
        return self._commit(batch[half:])

    # --- answers -----------------------------------------------------------------------------------------------------

    def _complete(self, answers: Sequence[tuple[Pending, Outcome | Exception]]) -> None:
        if answers:
            self._deliver(lambda: _set(answers))

    def _expired(self) -> list[Pending]:
        """Taken out of the queue, whose lock is held."""
        now = self._clock.monotonic()
        late = [waiting for waiting in self._waiting if waiting.deadline <= now]
        if late:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.deadline > now)
        return late

    def _fail_late(self, late: Sequence[Pending]) -> None:
        self._complete([(w, _not_answered(w, "its time was over")) for w in late if w.claim()])

    def _fail_all(self, why: str) -> None:
        with self._changed:
            left, self._in_hand = [*self._in_hand, *self._waiting], []
            self._waiting.clear()
        answers = [(w, _not_answered(w, why)) for w in left if not w.answered and w.claim()]
        try:
            self._complete(answers)
        except Exception as error:  # an event loop that is closed
            log.warning("lane %s: %r; its writers are told from its own thread", self._name, error)
            _set(answers)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._commit_until_closed()
            self._fail_all("its lane was closed")
        except BaseException as error:
            log.exception("lane %s ends by a fault of its own", self._name)
            with self._changed:
                self._closing, self._fault = True, error
            for waiting in self._in_hand:
                waiting.unsure = True
            self._fail_all(f"its lane ended{_because(error)}")

    def _commit_until_closed(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
            if self.step():
                pause = _FIRST_PAUSE
                continue
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause):
                    return
            pause = min(2 * pause, _LONGEST_PAUSE)


def _not_answered(waiting: Pending, why: str) -> StoreError:
    label = waiting.guarded.label
    if waiting.unsure:
        return OutcomeUnknown(f"{label}: {why} before etcd answered; it was sent, and may or may not have been made")
    return StoreUnavailable(f"{label}: {why} before etcd took it; it was not made")


def _set(answers: Sequence[tuple[Pending, Outcome | Exception]]) -> None:
    for waiting, answer in answers:
        waiting.answer(answer)


def _because(fault: BaseException | None) -> str:
    return f" ({fault!r})" if fault is not None else ""


def _at_once(complete: Callable[[], None]) -> None:
    complete()
