"""Which tasks may start, and which never will, by what they come after. Pure.

Rules that this file guards:
- A task is ready when each task of its `after` has completed and each of its `after_any` has ended.
- Where one of its `after` has ended otherwise it is skipped, with that one's name in the reason; so are those after it.
- A dependency that is not among the tasks that are not done is looked up by its owner (`lookups`), who tells how it ended
  (`ended`). One that nobody knows counts as failed: it is never a met dependency.
- Each task is told of once: as ready, or as skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A task that will never start."""

    task: str
    reason: str


@dataclass(slots=True)
class _Waiting:
    after: set[str]
    after_any: set[str]


class Dependencies:
    """Not thread-safe. `present` and `ended` return what has become ready and what is to be skipped, in order."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._dependants: dict[str, dict[str, None]] = {}
        """Task -> those that wait for it, in the order in which they came."""
        self._present: set[str] = set()
        self._lookups: dict[str, None] = {}

    def present(
        self, task: str, after: Iterable[str], after_any: Iterable[str], *, all_known: bool = True
    ) -> tuple[list[str], list[Skip]]:
        """A task is there, and not done.

        `all_known=False` while others of the same reading are still to come: then nothing is looked up yet, and
        `settle` follows.
        """
        self._present.add(task)
        self._lookups.pop(task, None)
        waiting = _Waiting(set(after), set(after_any))
        if not waiting.after and not waiting.after_any:
            return [task], []
        self._waiting[task] = waiting
        for dependency in sorted(waiting.after | waiting.after_any):
            self._dependants.setdefault(dependency, {})[task] = None
            if all_known and dependency not in self._present:
                self._lookups[dependency] = None
        return [], []

    def settle(self) -> None:
        """Every task of a reading is there: whatever is waited for and is not among them has to be looked up."""
        self._lookups.update(dict.fromkeys(name for name in self._dependants if name not in self._present))

    def take_lookups(self) -> list[str]:
        """Return the tasks whose ends must be looked up, once each; their owner answers by `ended`."""
        lookups = list(self._lookups)
        self._lookups.clear()
        return lookups

    def ended(self, task: str, completed: bool, how: str) -> tuple[list[str], list[Skip]]:
        """A task has ended, or is unknown. `how`: a word or two for the reason, such as "failed"."""
        self._present.discard(task)
        self._lookups.pop(task, None)
        self._forget(task)
        ready: list[str] = []
        skipped: list[Skip] = []
        for dependant in self._dependants.pop(task, {}):
            waiting = self._waiting.get(dependant)
            if waiting is None:
                continue
            if task in waiting.after and not completed:
                self._forget(dependant)
                skipped.append(Skip(task=dependant, reason=f"skipped: it comes after {task}, which {how}"))
                continue
            waiting.after.discard(task)
            waiting.after_any.discard(task)
            if not waiting.after and not waiting.after_any:
                del self._waiting[dependant]
                ready.append(dependant)
        return ready, skipped

    def gone(self, task: str) -> None:
        """A task is not there any more, and nobody has told how it ended: it is looked up if anything waits for it."""
        self._present.discard(task)
        self._forget(task)
        if task in self._dependants:
            self._lookups[task] = None

    def waits_for(self, task: str) -> list[str]:
        """Return what a task still waits for, sorted."""
        waiting = self._waiting.get(task)
        return sorted(waiting.after | waiting.after_any) if waiting is not None else []

    def _forget(self, task: str) -> None:
        waiting = self._waiting.pop(task, None)
        for dependency in sorted(waiting.after | waiting.after_any) if waiting is not None else ():
            if (dependants := self._dependants.get(dependency)) is not None:
                dependants.pop(task, None)
                if not dependants:
                    del self._dependants[dependency]
                    self._lookups.pop(dependency, None)


def find_cycle(after: dict[str, tuple[str, ...]]) -> list[str] | None:
    """Return a cycle among tasks, the first of it once more at its end; `None` if there is none."""
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        on_path: dict[str, int] = {}
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            task, number = stack.pop()
            if number == 0:
                if task in done:
                    continue
                if task in on_path:
                    return [*path[on_path[task] :], task]
                on_path[task] = len(path)
                path.append(task)
            dependencies = after.get(task, ())
            if number < len(dependencies):
                stack.append((task, number + 1))
                stack.append((dependencies[number], 0))
            else:
                done.add(task)
                path.pop()
                del on_path[task]
    return None


def dependencies_first(after: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the tasks so that each stands behind those that it comes after. There is no cycle."""
    ordered: dict[str, None] = {}
    for start in after:
        stack = [(start, False)]
        while stack:
            task, seen = stack.pop()
            if seen:
                ordered[task] = None
            elif task not in ordered:
                stack.append((task, True))
                stack.extend((name, False) for name in reversed(after[task]) if name in after)
    return list(ordered)
