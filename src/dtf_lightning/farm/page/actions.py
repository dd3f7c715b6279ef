"""What may be done from the page. Each is what a route of the API does, is in the audit file, and answers with a sentence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from dtf_lightning.farm.record.values import WorkerState
from dtf_lightning.farm.record.writes import Cancellation
from dtf_lightning.farm.server.change_worker import change_worker
from dtf_lightning.farm.server.tasks import UnknownTask

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

REASON = "cancelled on the page"


async def _cancel_task(coordinator: Coordinator, name: str) -> str:
    told = await coordinator.tasks.cancel(name, REASON)
    return "Cancelled." if told["cancellation"] == Cancellation.CANCELLED.value else "It had ended before."


async def _cancel_plan(coordinator: Coordinator, name: str) -> str:
    ended = 0
    while True:
        told = await coordinator.tasks.cancel_plan(name, REASON)
        ended += told["num_cancelled"]
        if not told["num_live"] or not told["num_cancelled"]:
            return f"{ended} tasks are cancelled." if ended else "All of it had ended before."


async def _drain(coordinator: Coordinator, name: str) -> str:
    await change_worker(coordinator.pool, coordinator.record, name, state=WorkerState.DRAINING)
    return f"{name} finishes what it runs, and ends."


async def _cordon(coordinator: Coordinator, name: str) -> str:
    await change_worker(coordinator.pool, coordinator.record, name, cordoned=True)
    return f"{name} gets nothing more; what it runs goes on."


async def _uncordon(coordinator: Coordinator, name: str) -> str:
    await change_worker(coordinator.pool, coordinator.record, name, cordoned=False)
    return f"{name} gets tasks again."


ACTIONS: dict[str, Callable[[Coordinator, str], Awaitable[str]]] = {
    "cancel-task": _cancel_task,
    "cancel-plan": _cancel_plan,
    "drain": _drain,
    "cordon": _cordon,
    "uncordon": _uncordon,
}


async def act(coordinator: Coordinator, action: str, name: str) -> str:
    """Do something, and return what has been done. Raises `UnknownTask` for what is not there, and what etcd raises."""
    if action not in ACTIONS:
        raise UnknownTask(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")
    return await ACTIONS[action](coordinator, name)
