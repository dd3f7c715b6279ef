"""The clients of a storm: they submit tasks all along, and ask again with the same ids until they are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.record.task_id import array_id, new_task_id
from dtf_lightning.farm.record.writes import Submission
from dtf_lightning.farm.testkit.orders import REAL, SIMULATED, Character, Order, command, tasks_of

PROJECTS = ("vision", "language", "tests")
AGAIN = 0.3
"""Seconds after which tasks are asked for once more whose client wants them twice."""
BUSY = (503, 507)
"""Answers after which the same is asked again."""


@dataclass
class Clients:
    """Several threads that share the batches of a storm.

    Args:
        connect: makes a client.
        batches: what is asked for, in order.
        seconds: over which they are spread.
        runs: file to which real attempts append that they run.
        num_threads: clients at the same time.
    """

    connect: Callable[[], Client]
    batches: Sequence[tuple[Order, ...]]
    seconds: float
    runs: Path
    num_threads: int = 3
    accepted: dict[str, Order] = field(default_factory=dict)
    """Task -> what was asked for; of a task that the farm has said it has accepted."""
    before: dict[str, str] = field(default_factory=dict)
    """Task -> the task that must have completed before it."""
    problems: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds that the slowest submission took."""
    num_lost_answers: int = 0
    """Submissions that had to be asked for again."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Make the projects, and begin. Raises what `Client` raises."""
        with self.connect() as client:
            for weight, project in enumerate(PROJECTS, 1):
                client.set_project(project, weight=weight)
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, name=f"storm-client-{number}", daemon=True)
            for number in range(self.num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait until all is submitted; whether it is."""
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    # --- in the threads ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self.connect() as client:
                while (batch := self._take()) is not None:
                    self._submit(client, batch)
        except Exception as error:
            self.problems.append(f"a client failed: {error!r}")

    def _take(self) -> tuple[Order, ...] | None:
        with self._lock:
            number, self._next = self._next, self._next + 1
        if number >= len(self.batches):
            return None
        due = self._began + self.seconds * number / len(self.batches)
        if self._stopping.wait(max(due - time.monotonic(), 0)):
            return None
        return self.batches[number]

    def _submit(self, client: Client, batch: tuple[Order, ...]) -> None:
        ids = {order.number: _new_id(order) for order in batch}
        requests = [self._request(order, ids) for order in batch]
        began = time.monotonic()
        told = self._insist(lambda: client.submit_all(requests))
        self.longest = max(self.longest, time.monotonic() - began)
        self._note(told, f"tasks {batch[0].number} to {batch[-1].number}")
        with self._lock:
            for order in batch:
                self.accepted |= tasks_of(ids[order.number], order)
                if order.after is not None:
                    self.before[ids[order.number]] = ids[order.after]
        for order in batch:
            if order.character is Character.CANCELLED:
                self._insist(lambda order=order: client.cancel(ids[order.number]))  # type: ignore[misc]
        again = [request for order, request in zip(batch, requests, strict=True) if order.twice and order.after is None]
        if again:
            self._stopping.wait(AGAIN)
            told = self._insist(lambda: client.submit_all(again))
            if any(one["submission"] == Submission.NEW.value for one in told):
                self.problems.append(f"submitted once more, and taken for new: {told}")

    def _request(self, order: Order, ids: dict[int, str]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "task_id": ids[order.number],
            "command": command(order, str(self.runs)),
            "name": f"storm {order.number}",
            "project": PROJECTS[order.number % len(PROJECTS)],
            "needs": [{"amounts": {"cpu": 1.0}, "labels": [REAL if order.real else SIMULATED]}],
            "retries": 1 if order.character is Character.FAILS_ONCE else 0,
            "gang": order.gang,
            "array": order.array,
            "reuse": bool(order.work),
            "environment": {"WORK": order.work} if order.work else {},
        }
        return request | ({"dependencies": [ids[order.after]]} if order.after is not None else {})

    def _insist(self, ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer."""
        while True:
            try:
                return ask()
            except FarmUnreachable:
                self.num_lost_answers += 1
            except FarmRefused as refusal:
                if refusal.status not in BUSY:
                    raise
                self.num_lost_answers += 1

    def _note(self, told: Sequence[dict[str, Any]], what: str) -> None:
        allowed = {Submission.NEW.value, Submission.KNOWN.value, Submission.DONE.value}
        wrong = [one for one in told if one["submission"] not in allowed]
        if wrong:
            self.problems.append(f"{what} were refused: {wrong}")


def _new_id(order: Order) -> str:
    task = new_task_id(time.time())
    return array_id(task) if order.array else task
