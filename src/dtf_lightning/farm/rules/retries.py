"""Which tasks of a plan are submitted again, and what the new ones come after. Pure.

Rules that this file guards:
- A task that is done stays as it is, since its result is recorded once. What is tried again is a new task, whose
  `retry_of` names it. So tasks form chains; the latest of a chain speaks for all of it.
- A task that was skipped is tried again with the one for whose end it was skipped. One that ran is not: a clean-up that
  comes after any end has done its work.
- What a new task comes after are the latest of those that the old one came after. Those that have completed are left
  out: there is nothing to wait for, and looking thousands of them up would cost as many readings.
- The same retry, asked for again after a lost answer, or page after page, makes the same tasks: each new id is made of the
  retry's id and the old task's (`new_id`), so that what this retry has made is known by its id, and never tried again by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from dtf_lightning.farm.rules.dependencies import dependencies_first

COMPLETED, SKIPPED, LIVE = "completed", "skipped", ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTask:
    """One task of a plan."""

    task: str
    outcome: str
    """How it ended; `LIVE` if it has not."""
    after: tuple[str, ...] = ()
    """Tasks that must have completed. Of one that has completed itself nobody asks."""
    retry_of: str = ""


class Retries:
    """What may be tried again of one plan.

    Args:
        tasks: all of the plan, done or not.
        new_id: id of a task -> the id that it has when this retry submits it again.
    """

    def __init__(self, tasks: Iterable[PlanTask], new_id: Callable[[str], str]) -> None:
        self._tasks = {task.task: task for task in tasks}
        self._new_id = functools.cache(new_id)
        self._made: set[str] = set()
        """Tasks that this retry has submitted again."""
        self._others: dict[str, list[str]] = {}
        """Task -> those by which other retries have submitted it again."""
        for task in self._tasks.values():
            if self._is_ours(task):
                self._made.add(task.retry_of)
            elif task.retry_of:
                self._others.setdefault(task.retry_of, []).append(task.task)

    def not_completed(self) -> list[str]:
        """Return those that ended otherwise than completed, the latest of each chain, dependencies first."""
        return self._ordered(
            task.task
            for task in self._tasks.values()
            if task.outcome not in (COMPLETED, LIVE) and self._is_latest(task.task) and not self._is_ours(task)
        )

    def with_skipped(self, task: str) -> list[str]:
        """Return a task that is done and those that were skipped because of its end, however far, dependencies first."""
        waiting: dict[str, list[str]] = {}
        for other in self._tasks.values():
            if other.outcome == SKIPPED and self._is_latest(other.task) and not self._is_ours(other):
                for name in other.after:
                    waiting.setdefault(name, []).append(other.task)
                    if (latest := self._latest(name)) != name:
                        waiting.setdefault(latest, []).append(other.task)
        found, left = {task: None}, [task]
        while left:
            for other_task in waiting.get(left.pop(), ()):
                if other_task not in found:
                    found[other_task] = None
                    left.append(other_task)
        return self._ordered(found)

    def is_made(self, task: str) -> bool:
        """Whether this retry has submitted a task again already."""
        return task in self._made

    def about_to_be_skipped(self) -> list[str]:
        """Return tasks that are not done and come after one that did not complete: the leader has yet to end them."""
        lost = {task.task for task in self._tasks.values() if task.outcome not in (COMPLETED, LIVE)}
        return [task.task for task in self._tasks.values() if task.outcome == LIVE and not lost.isdisjoint(task.after)]

    def rewired(self, names: Iterable[str], again: Container[str]) -> tuple[str, ...]:
        """Return what a new task comes after, where the old one came after `names`.

        Args:
            again: the tasks that this retry submits.
        """
        found: dict[str, None] = {}
        for name in names:
            latest = self._latest(name)
            if latest in again:
                found[self._new_id(latest)] = None
            elif latest not in self._tasks or self._tasks[latest].outcome != COMPLETED:
                found[latest] = None
        return tuple(found)

    def _ordered(self, tasks: Iterable[str]) -> list[str]:
        known = dict.fromkeys(sorted(tasks))
        after = {
            task: tuple(latest for name in self._after(task) if (latest := self._latest(name)) in known)
            for task in known
        }
        return dependencies_first(after)

    def _after(self, task: str) -> tuple[str, ...]:
        return self._tasks[task].after if task in self._tasks else ()

    def _is_ours(self, task: PlanTask) -> bool:
        return bool(task.retry_of) and self._new_id(task.retry_of) == task.task

    def _is_latest(self, task: str) -> bool:
        """Whether nobody has tried it again, but perhaps this retry."""
        return task not in self._others

    def _latest(self, task: str) -> str:
        """Return the last of a chain, before what this retry has added to it."""
        while others := self._others.get(task):
            task = max(others)
        return task
