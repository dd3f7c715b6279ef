"""The books of a storm: what was accepted beside what the farm has recorded and what workers did. Pure.

They balance if every task that was accepted is recorded exactly once, by an attempt that a worker really made, and if
nothing is left over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.testkit.ledger import Acknowledged, Execution
from dtf_lightning.farm.testkit.orders import MAY_END, SUSPECTED, Character, Order, tasks_of

SHOWN = 3
"""Tasks that a problem names."""


@dataclass(frozen=True, slots=True)
class Row:
    """A task's result as one coordinator has it in DuckDB."""

    task: str
    outcome: str
    attempt: int
    revision: int
    tail: str
    reused_from: str = ""
    """The task whose result it is; "": its own."""


@dataclass(frozen=True, kw_only=True)
class Books:
    """Everything that is known when a storm is over."""

    accepted: Mapping[str, Order]
    """Task -> what was asked for."""
    before: Mapping[str, str]
    """Task -> the task that must have completed before it."""
    recorded: Mapping[str, Envelope]
    """Task -> its result in etcd."""
    versions: Mapping[str, int]
    """Task -> how often etcd's key of its result was written."""
    archived: frozenset[str]
    """Tasks whose result etcd has forgotten, since the archive has it."""
    rows: Mapping[str, Sequence[Row]]
    """Coordinator -> the results in its DuckDB."""
    executions: Sequence[Execution]
    acknowledged: Sequence[Acknowledged]
    left_over: Sequence[str] = field(default=())
    """Keys, processes, sockets and files that should not be there, in words."""

    @property
    def executed_again(self) -> int:
        """How many tasks were begun more than once."""
        return sum(times > 1 for times in Counter(one.task for one in self.executions).values())

    @property
    def used_again(self) -> int:
        """How many tasks ended by the result of another one."""
        return sum(bool(row.reused_from) for row in self._rows().values())

    def summary(self) -> str:
        """Say it in one line."""
        outcomes = Counter(row.outcome for row in self._rows().values())
        return (
            f"accepted {len(self.accepted)}, recorded {len(self._rows())} once, executed twice {self.executed_again} "
            f"({', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())})"
        )

    def problems(self) -> list[str]:
        """Return what does not balance, in sentences; nothing if all does."""
        return [*self._recorded_once(), *self._ends(), *self._only_what_counts(), *self.left_over]

    def _rows(self) -> dict[str, Row]:
        """Task -> its result as the first coordinator has it."""
        return {row.task: row for row in next(iter(self.rows.values()), ())}

    def _recorded_once(self) -> Iterator[str]:
        accepted = self.accepted.keys()
        kept = self.recorded.keys() | self.archived
        yield from _told("tasks were accepted and are not in etcd's record", accepted - kept)
        yield from _told("tasks are in etcd's record and were not accepted", kept - accepted)
        yield from _told(
            "results were written more than once", {task for task, version in self.versions.items() if version != 1}
        )
        for coordinator, rows in self.rows.items():
            count = Counter(row.task for row in rows)
            yield from _told(f"tasks are missing in {coordinator}'s DuckDB", accepted - count.keys())
            yield from _told(f"tasks are in {coordinator}'s DuckDB and were not accepted", count.keys() - accepted)
            yield from _told(f"tasks are twice in {coordinator}'s DuckDB", {task for task in count if count[task] > 1})
            yield from _told(
                f"tasks are in {coordinator}'s DuckDB otherwise than in etcd",
                {
                    row.task
                    for row in rows
                    if row.task in self.recorded and row != row_of(row.task, self.recorded[row.task])
                },
            )
        views = [set(rows) for rows in self.rows.values()]
        yield from _told(
            "results are not the same in the DuckDB of all coordinators",
            {row.task for view in views for row in view ^ views[0]},
        )

    def _ends(self) -> Iterator[str]:
        """Whether each task ended as it may."""
        rows = self._rows()
        wrong: dict[str, set[str]] = defaultdict(set)
        for task, order in self.accepted.items():
            if (row := rows.get(task)) is None:
                continue
            outcome = TaskOutcome(row.outcome)
            if order.array:
                instances = {rows[one].outcome for one in tasks_of(task, order) if one != task and one in rows}
                whole = instances == {TaskOutcome.COMPLETED.value}
                if outcome is not (TaskOutcome.COMPLETED if whole else TaskOutcome.FAILED):
                    wrong[f"{outcome.value}, though an array whose instances are {', '.join(sorted(instances))}"].add(
                        task
                    )
                continue
            first = rows.get(self.before.get(task, ""))
            unmet = first is not None and first.outcome != TaskOutcome.COMPLETED.value
            if unmet and outcome is not TaskOutcome.SKIPPED and order.character is not Character.CANCELLED:
                wrong[f"{outcome.value} behind a task that did not complete"].add(task)
            suspect = task in self.recorded and SUSPECTED in self.recorded[task].reason
            if (
                not unmet
                and outcome not in MAY_END[order.character]
                and not (outcome is TaskOutcome.FAILED and suspect)
            ):
                wrong[f"{outcome.value}, though a task that {order.character.value}"].add(task)
        for what, tasks in sorted(wrong.items()):
            yield from _told(f"tasks ended as {what}", tasks)

    def _only_what_counts(self) -> Iterator[str]:
        """Whether each result is that of an execution, of the attempt that counts."""
        rows = self._rows()
        began: dict[tuple[str, int], set[str]] = defaultdict(set)
        for execution in self.executions:
            began[execution.task, execution.number].add(execution.said)
        arrays = {task for task, order in self.accepted.items() if order.array}
        gangs = {task for task, order in self.accepted.items() if order.gang > 1}
        completed = {
            task: row
            for task, row in rows.items()
            if row.outcome == TaskOutcome.COMPLETED.value and task not in arrays and not row.reused_from
        }
        yield from self._taken_over(rows, completed)
        yield from _told(
            "tasks completed by an attempt that no worker began",
            {task for task, row in completed.items() if not began[task, row.attempt]},
        )
        yield from _told(
            "results hold the output of another attempt than the one that counts",
            {task for task, row in completed.items() if row.tail.strip() not in began[task, row.attempt]},
        )
        never = {TaskOutcome.SKIPPED.value, TaskOutcome.EXPIRED.value}
        ran = {execution.task for execution in self.executions}
        yield from _told(
            "tasks were skipped and ran", {task for task in ran & rows.keys() if rows[task].outcome in never}
        )
        yield from _told("tasks ran that were not accepted", ran - self.accepted.keys())
        yield from _told(
            "results were acknowledged as recorded, and another attempt's counts",
            {
                one.task
                for one in self.acknowledged
                if one.recorded
                and one.task not in gangs  # a member's end counts as long as its whole attempt does
                and one.kind == TaskOutcome.COMPLETED.value
                and (one.task not in rows or (rows[one.task].outcome, rows[one.task].attempt) != (one.kind, one.number))
            },
        )

    def _taken_over(self, rows: Mapping[str, Row], ran: Mapping[str, Row]) -> Iterator[str]:
        """Whether each result that was used again is that of the same work, which completed by itself."""
        reused = {task: row for task, row in rows.items() if row.reused_from and task in self.accepted}
        wrong = {
            task
            for task, row in reused.items()
            if (source := ran.get(row.reused_from)) is None
            or not self.accepted[task].work
            or self.accepted[task].work != self.accepted[source.task].work
            or (row.outcome, row.tail, row.attempt) != (source.outcome, source.tail, 0)
        }
        yield from _told("tasks ended by a result that is not that of the same work", wrong)
        tried = {execution.task for execution in self.executions}
        yield from _told("tasks ended by another one's result and were begun", tried & reused.keys())


def row_of(task: str, envelope: Envelope) -> Row:
    """Return a result in etcd as DuckDB has it."""
    return Row(task, envelope.outcome.value, envelope.attempt, envelope.revision, envelope.tail, envelope.reused_from)


def _told(what: str, tasks: set[str]) -> Iterator[str]:
    if tasks:
        more = " ..." if len(tasks) > SHOWN else ""
        yield f"{len(tasks)} {what}: {', '.join(sorted(tasks)[:SHOWN])}{more}"
