"""Shards as tasks of the farm: submitted, followed by a thread each, cancelled. What happens comes as events."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.client import Client, TaskInfo
from dtf_lightning.farm.pytest_runs.worker_side.start import SHARD
from dtf_lightning.farm.record.task_id import new_task_id

CALL = "dtf_lightning.farm.pytest_runs.worker_side.start:begin"
JOIN_TIMEOUT = 20.0
"""Seconds for the threads to end once their connections are shut down."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A shard's attempt has printed this."""

    shard: int
    worker: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An attempt at a shard has ended."""

    shard: int
    revision: int
    """Of the attempt."""
    worker: str
    task: TaskInfo
    lost: bool
    """Whether its worker was: the farm tries the whole task again, unless it is cancelled. `task` has not ended then."""


@dataclass(frozen=True, kw_only=True)
class Broke:
    """The farm could not be asked any more."""

    error: Exception


Event = Said | Ended | Broke


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """A shard that is to run. `number` is its name in events; `file` is what `start.begin` reads."""

    number: int
    file: bytes
    fields: Mapping[str, Any]
    """Of its task."""


class ShardTasks:
    """Of one run. `fields`: what all its tasks have in common."""

    def __init__(self, farm: Client, fields: Mapping[str, Any]) -> None:
        self._farm = farm
        self._plan = new_task_id(time.time())
        self._fields = fields
        self._tasks: dict[int, str] = {}
        self._threads: list[threading.Thread] = []
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def submit(self, orders: Sequence[ShardOrder]) -> None:
        """Submit shards and follow them. Raises what the client raises."""
        requests = []
        for order in orders:
            digest = hashlib.sha256(order.file).hexdigest()
            self._farm.send_files({digest: order.file})
            self._tasks[order.number] = new_task_id(time.time())
            requests.append(
                {
                    "task_id": self._tasks[order.number],
                    "plan": self._plan,
                    "call": CALL,
                    "args": [SHARD],
                    "inputs": {SHARD: f"sha256:{digest}"},
                    **self._fields,
                    **order.fields,
                }
            )
        self._farm.submit_all(requests)
        for order in orders:
            self.follow(order.number, 0)

    def follow(self, shard: int, revision: int) -> None:
        """Follow the next attempt at a shard's task. `revision`: of the one before it; 0: it is the first."""
        thread = threading.Thread(target=self._follow, args=(shard, revision), name="dtf-pytest-shard", daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self, shard: int, reason: str) -> None:
        """End a shard's task."""
        self._farm.cancel(self._tasks[shard], reason)

    def cancel_all(self, reason: str) -> None:
        """End what is left of the run."""
        self._farm.cancel_plan(self._plan, reason)

    def close(self) -> None:
        """Follow no more."""
        self._farm.connection.interrupt()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT)
        self._farm.connection.close_all()

    def _follow(self, shard: int, before: int) -> None:
        task = self._tasks[shard]
        try:
            info = self._farm.next_attempt(task, before)
            while not info.done and not _worker(info):  # its last worker was lost, and it has no other one yet
                info = self._farm.next_attempt(task, info.revision)
            revision, worker = info.revision, _worker(info)
            if revision not in (0, before):
                for chunk in self._farm.logs(task, follow=True, revision=revision):
                    self.events.put(Said(shard=shard, worker=worker, data=chunk))
                info = self._farm.next_attempt(task, revision)
            self.events.put(Ended(shard=shard, revision=revision, worker=worker, task=info, lost=not info.done))
        except DtfError as error:
            self.events.put(Broke(error=error))
        except Exception as error:  # a thread must not end without a word: the run would wait for ever
            self.events.put(Broke(error=error))


def _worker(info: TaskInfo) -> str:
    return str(info.raw.get("worker_id") or "")
