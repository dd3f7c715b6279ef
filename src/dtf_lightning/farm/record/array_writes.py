"""The write that brings instances of an array to life. Pure.

| write | guard | what is written |
|---|---|---|
| `Birth` | the leader's fence, the array is there, its frontier as seen | a task for each instance, and the frontier behind them |

The frontier is `Attempt.born` under the array's own key in `attempts/`: so whatever ends a task ends an array, too, and by the
same guard nothing is born behind its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dtf_lightning.etcd.store import Compare, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import instance_id
from dtf_lightning.farm.record.values import Attempt, TaskSpecification
from dtf_lightning.farm.record.writes import Decision, LaneName, decided
from dtf_lightning.farm.trainings.launch import of_run


def instance_of(array: str, specification: TaskSpecification, index: int) -> TaskSpecification:
    """Return what an instance of an array is asked for. What it comes after has ended when it is born."""
    return replace(
        specification,
        command=of_run(specification.command, array) if specification.training else specification.command,
        array=0,
        array_id=array,
        index=index,
        name=f"{specification.name}[{index}]",
        after=(),
        after_any=(),
        key="",
    )


@dataclass(frozen=True, kw_only=True)
class Birth:
    """Bring instances to life: the next ones, and as many as one write takes (`rules.arrays.AT_ONCE`)."""

    array: str
    specification: TaskSpecification
    """The array's."""
    numbers: range
    """Of the instances; they begin at the frontier."""
    seen: int
    """The mod revision of the frontier; 0 if nothing was born yet."""
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the head of this file."""
        task, frontier = keys.key(Kind.TASK, self.array), keys.key(Kind.ATTEMPT, self.array)
        compares = (self.fence, as_seen(frontier, self.seen), present(task))
        born = [
            Put(
                keys.key(Kind.TASK, instance_id(self.array, index)),
                encode(instance_of(self.array, self.specification, index)),
            )
            for index in self.numbers
        ]
        put = Put(frontier, encode(self._frontier()))
        return Guarded(f"births of {self.array}", compares, (put, *born), (self.fence.key, frontier, task))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return decided(outcome, self._frontier(), self.fence)

    def _frontier(self) -> Attempt:
        return Attempt(number=0, born=self.numbers.stop)
