"""What each screen shows, as plain data: the page's HTML and its JSON are both made of it, and rows are what the API gives.

Rule: there is no second truth. A task, a worker and a plan are shown by the functions that the API's routes call, and no
filter of a screen changes a number that is not about what it filters.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.page.graph import Node, draw
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.results.rows import seconds
from dtf_lightning.farm.results.store import Wanted
from dtf_lightning.farm.rules.paging import read_cursor, read_order
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.lists.plans import plan_counts
from dtf_lightning.farm.server.lists.summary import Summary, summarise
from dtf_lightning.farm.server.lists.tasks import DONE_STATUSES, SORTED_BY, TaskFilter, TaskLists
from dtf_lightning.farm.server.pool import LIVE_STATUSES

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Query = Mapping[str, str]
PAGE = 100
"""Tasks of one page of a list."""
FAILED = 10
"""Latest failed tasks that are named."""
WAITING = 5
"""Longest waiting tasks that are named, each with its reason."""
GRAPH = 2_000
"""Tasks of a plan that are looked at for its graph."""
REMEMBERED = 200
STATUSES = (*LIVE_STATUSES, *DONE_STATUSES)
FILTERS = ("status", "project", "plan", "name", "worker", "search")


_FORGOTTEN: dict[str, Any] = {
    "name": "",
    "parameters": {"command": []},
    "worker_id": None,
    "create_time": None,
    "start_time": None,
    "end_time": None,
    "dependencies": [],
    "results": None,
    "error": None,
}
"""What is not known of a task of which the record only remembers how it ended."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a screen shows."""

    screen: str
    title: str
    data: dict[str, Any]


class Screens:
    """Runs on the coordinator's event loop. Each method raises `UnknownTask`, `SettingsError`, and what etcd raises."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._pool = coordinator.pool
        self._lists = TaskLists(coordinator.pool, coordinator.tasks.show, coordinator.history)
        self._failures: OrderedDict[tuple[str, int, str], list[dict[str, Any]]] = OrderedDict()

    async def now(self, _: Query) -> View:
        """What runs, waits and has failed, and how much of the workers is in use."""
        told = await summarise(self._pool)
        show = self._coordinator.tasks.show
        failed = [
            models.done_task(task, envelope)
            for task, envelope in reversed(self._pool.all_recent())
            if envelope.outcome in (TaskOutcome.FAILED, TaskOutcome.EXPIRED)
        ]
        workers = self._workers(told)
        data = {
            "counts": told.counts,
            "num_recent": len(self._pool.all_recent()),
            "num_failed": len(failed),
            "failed": failed[:FAILED],
            "running": [show(live) for status in ("running", "assigned") for live in told.oldest[status]],
            "waiting": [show(live) for live in told.oldest["pending"][:WAITING]],
            "workers": workers,
            "num_connected": sum(worker["status"] != "offline" for worker in workers),
            "results": self._coordinator.history.status(),
            "leader": self.leader(),
            "findings": self._findings(),
        }
        return View(screen="now", title="Now", data=data)

    async def tasks(self, query: Query, limit: int | None = None) -> View:
        """A page of a list of tasks, of `PAGE` where no other limit is given."""
        refuse_unknown(query, (*FILTERS, "sort", "cursor"))
        order = read_order(query.get("sort", ""), SORTED_BY, "-created")
        status, project, plan, name, worker, search = (query.get(field, "").strip() for field in FILTERS)
        wanted = TaskFilter(status=status, project=project, plan=plan, name=name, worker=worker, search=search)
        behind = read_cursor(query.get("cursor", ""), order, SORTED_BY)
        page = await self._lists.page(wanted, order, behind, limit or PAGE)
        return View(screen="tasks", title="Tasks", data=page | {"sort": str(order), "statuses": STATUSES})

    async def task(self, task: str) -> View:
        """One task: what it is at, why it waits, its attempts, and how much it has written."""
        told = {**_FORGOTTEN, **await self._coordinator.tasks.task(task)}
        number = told["metadata"].get("attempt", 0)
        files = self._coordinator.tasks.files
        written = await asyncio.to_thread(files.attempts_with_log, task)
        live = self._pool.live(task)
        attempt = live.revision if live is not None and live.attempt.workers else written[-1] if written else 0
        size = await asyncio.to_thread(files.log_size, task, attempt)
        data = {
            "task": told,
            "done": told["status"] in DONE_STATUSES,
            "why": told["metadata"].get("reason", ""),
            "waits_for": self._not_done(told),
            "failed_attempts": await self._failed_attempts(task, number, told["status"]),
            "output": {"attempt": attempt, "size": size, "attempts": written},
            "leader": self.leader(),
        }
        return View(screen="task", title=title_of(told), data=data)

    async def plan(self, plan: str, query: Query, limit: int | None = None) -> View:
        """How far a plan is, what comes after what in it, and a page of its tasks."""
        counts = await plan_counts(self._pool, self._coordinator.history, plan)
        order = read_order(query.get("sort", ""), SORTED_BY, "created")
        behind = read_cursor(query.get("cursor", ""), order, SORTED_BY)
        page = await self._lists.page(TaskFilter(plan=plan), order, behind, limit or PAGE)
        nodes = await self._nodes(plan) if counts["total"] <= GRAPH else []
        graph = draw(nodes)
        data = {
            "plan": plan,
            **counts,
            **page,
            "sort": str(order),
            "graph": {
                "width": graph.width,
                "height": graph.height,
                "lines": list(graph.lines),
                "too_many": counts["total"] if counts["total"] > GRAPH else graph.too_many,
                "nodes": [
                    {
                        "title": placed.node.title,
                        "state": placed.node.state,
                        "tasks": list(placed.node.tasks),
                        "x": placed.x,
                        "y": placed.y,
                    }
                    for placed in graph.nodes
                ],
            },
        }
        return View(screen="plan", title=f"Plan {plan}", data=data)

    async def fleet(self, query: Query) -> View:
        """The workers: what they are at, what they offer, and what is in use of it."""
        status, label = query.get("status", ""), query.get("label", "")
        workers = self._workers(await summarise(self._pool))
        shown = [
            worker
            for worker in workers
            if status in ("", worker["status"]) and (not label or label in worker["capabilities"]["labels"])
        ]
        data = {
            "workers": shown,
            "total": len(workers),
            "statuses": sorted({worker["status"] for worker in workers}),
            "findings": self._findings("worker_", "queue_"),
        }
        return View(screen="fleet", title="Fleet", data=data)

    async def cluster(self, _: Query) -> View:
        """The coordinators, who leads, and since which term."""
        told, status = self._coordinator.cluster_status(), self._coordinator.status()
        data = told | {name: status[name] for name in ("farm", "coordinator", "version", "results", "warnings")}
        data["findings"] = self._findings("no_", "etcd_", "coordinator_", "results", "files")
        told = self._coordinator.upkeep.monitor.status()
        data |= {"changes": told["changes"], "remedies": told["remedies"]}
        data["incidents"] = self._coordinator.upkeep.alerts.show()["incidents"]
        return View(screen="cluster", title="Cluster", data=data)

    def addresses(self) -> list[str]:
        """Where the coordinators are reached."""
        return [record.address for record in self._pool.coordinators().values()]

    def leader(self) -> dict[str, Any]:
        """Who leads, where that is, and whether it is this coordinator: it alone knows why a task waits."""
        told = self._coordinator.cluster_status()
        name = told["leader_id"]
        address = next((node["address"] for node in told["nodes"] if node["node_id"] == name), "")
        return {"name": name, "address": address, "here": self._coordinator.leads}

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _findings(self, *kinds: str) -> list[dict[str, str]]:
        """What is wrong, of kinds that begin so; of all without one."""
        found = self._coordinator.upkeep.monitor.findings()
        return [one for one in found if not kinds or one["kind"].startswith(kinds)]

    def _workers(self, told: Summary) -> list[dict[str, Any]]:
        coordinators = self._pool.coordinators()
        return [
            models.worker(name, record, told.tasks_of.get(name, []), record.coordinator in coordinators)
            | {"used": {resource: told.used.get(name, {}).get(resource, 0.0) for resource in record.devices}}
            for name, record in self._pool.workers().items()
        ]

    def _not_done(self, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a task that is not done waits for, as far as that is not done either."""
        if told["status"] != "waiting":
            return []
        live = (self._pool.live(name) for name in told["dependencies"])
        return [self._coordinator.tasks.show(one) for one in live if one is not None]

    async def _failed_attempts(self, task: str, number: int, status: str) -> list[dict[str, Any]]:
        """What failed before the attempt that counts. There are no more of them until it has another number or has ended."""
        if not number:
            return []
        key = task, number, status
        if key in self._failures:
            return self._failures[key]
        told: dict[int, dict[str, Any]] = {
            attempt: {
                "revision": failed.revision,
                "workers": failed.workers,
                "reason": failed.reason,
                "at": failed.ended,
            }
            for attempt, failed in await self._coordinator.tasks.failed_attempts(task)
        }
        if status in DONE_STATUSES and len(told) < number - 1:
            rows = await asyncio.to_thread(self._coordinator.history.page, Wanted(task=task), limit=1)
            for row in rows[0]["failed_attempts"] if rows else []:
                told.setdefault(row["number"], {**row, "at": seconds(row["ended"])})
        found = [
            {
                "number": attempt,
                "revision": one["revision"],
                "workers": list(one["workers"]),
                "reason": one["reason"],
                "end_time": models.when(one["at"]),
            }
            for attempt, one in sorted(told.items())
        ]
        self._failures[key] = found
        if len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)
        return found

    async def _nodes(self, plan: str) -> list[Node]:
        page = await self._lists.page(TaskFilter(plan=plan), read_order("created", SORTED_BY, ""), None, GRAPH)
        return [
            Node(
                name=task["task_id"],
                title=title_of(task),
                state=task["status"],
                after=tuple(task["dependencies"]),
            )
            for task in page["tasks"]
        ]


def refuse_unknown(query: Query, known: Sequence[str]) -> None:
    """Raise `SettingsError` for a filter that a screen does not have."""
    if unknown := query.keys() - set(known):
        raise SettingsError(f"this list cannot be filtered by {', '.join(sorted(unknown))}; try {', '.join(known)}")


def title_of(task: Mapping[str, Any]) -> str:
    """Return what a task is called: its name, or else how its command begins."""
    command = " ".join((task.get("parameters") or {}).get("command", ()))
    return task.get("name") or (command if len(command) <= 80 else f"{command[:79]}…") or task["task_id"]
