"""`Arrays`: which instances of the farm's arrays are to come to life, and which arrays are over. Pure; a leader's.

Data flow: an array is ready -> a bunch of instances is born (`Birth`), each a task of its own -> the scheduler places them ->
as fewer of them wait, more are born -> all are born and none is left -> how they ended is looked up -> the array's own result.

Rules that this file guards:
- What is born is what the record says (`Attempt.born` of the array): an instance is born once, over all leaders.
- An array's end is written against the frontier as seen: nothing is born behind it.
- An instance whose array is gone is cancelled: an array ends before its instances only by being cancelled.
"""

from __future__ import annotations

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.array_writes import Birth
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import NO_ATTEMPT, Attempt, TaskSpecification
from dtf_lightning.farm.rules.arrays import births


class Arrays:
    """Not thread-safe."""

    def __init__(self, mirror: Mirror, fence: Compare) -> None:
        self._mirror = mirror
        self._fence = fence
        self._ready: dict[str, None] = {}
        """Arrays whose instances may begin."""
        self._live: dict[str, set[str]] = {}
        """Array -> its instances that are not done."""
        self._waiting: dict[str, set[str]] = {}
        """Array -> those of them that have no worker."""
        self._asked: dict[str, int] = {}
        """Array -> the revision of its frontier at which something was decided."""
        self._to_look_at: dict[str, None] = {}
        self.over: list[tuple[str, int]] = []
        """Arrays of which it is to be looked up how instances ended, each with its frontier's revision."""

    def ready(self, array: str) -> None:
        """Nothing that an array comes after is missing, or its frontier has moved."""
        self._ready[array] = None
        self._to_look_at[array] = None

    def gone(self, array: str) -> list[str]:
        """An array is not there any more; returns its instances that are."""
        for known in (self._ready, self._asked, self._to_look_at):
            known.pop(array, None)
        return sorted(self._live.get(array, ()))

    def instance(self, array: str, task: str, *, waits: bool) -> None:
        """An instance is there, with or without workers."""
        self._live.setdefault(array, set()).add(task)
        waiting = self._waiting.setdefault(array, set())
        if waits:
            waiting.add(task)
        else:
            waiting.discard(task)
        self._to_look_at[array] = None

    def instance_gone(self, array: str, task: str) -> None:
        """An instance has ended. Ids that only look like one's are passed over."""
        if array not in self._live:
            return
        for known in (self._live, self._waiting):
            if array in known:
                known[array].discard(task)
                if not known[array]:
                    del known[array]
        self._to_look_at[array] = None

    def next(self) -> list[Birth]:
        """Return what is to be born now; the arrays that are over by now are in `over`."""
        born: list[Birth] = []
        for array in self._to_look_at:
            held = self._mirror.get(Kind.TASK, array)
            if held is None or array not in self._ready:
                continue
            assert isinstance(held.value, TaskSpecification)
            seen, attempt = self._frontier(array)
            if self._asked.get(array) == seen:
                continue
            numbers = births(attempt.born, held.value.array, len(self._waiting.get(array, ())))
            if numbers:
                self._asked[array] = seen
                born.append(Birth(array=array, specification=held.value, numbers=numbers, seen=seen, fence=self._fence))
            elif attempt.born == held.value.array and array not in self._live:
                self._asked[array] = seen
                self.over.append((array, seen))
        self._to_look_at.clear()
        return born

    def is_over(self, array: str) -> bool:
        """Whether all its instances have come to life, and none is left."""
        held = self._mirror.get(Kind.TASK, array)
        count = held.value.array if held is not None and isinstance(held.value, TaskSpecification) else 0
        return self._frontier(array)[1].born == count and array not in self._live

    def trainings_with_ended_parts(self) -> list[tuple[str, int]]:
        """Return the trainings of which some parts have ended, each with the revision of its frontier."""
        found = []
        for (array,), held in self._mirror.all(Kind.TASK).items():
            assert isinstance(held.value, TaskSpecification)
            if held.value.training and held.value.array:
                seen, attempt = self._frontier(array)
                if len(self._live.get(array, ())) < attempt.born:
                    found.append((array, seen))
        return found

    def again(self, array: str) -> None:
        """What was decided about an array could not be done: decide again."""
        self._asked.pop(array, None)
        self._to_look_at[array] = None

    def explain(self, array: str) -> str:
        """Say in one sentence how far an array is."""
        held = self._mirror.get(Kind.TASK, array)
        count = held.value.array if held is not None and isinstance(held.value, TaskSpecification) else 0
        _, attempt = self._frontier(array)
        live, waiting = len(self._live.get(array, ())), len(self._waiting.get(array, ()))
        return (
            f"of its {count} instances {attempt.born - live} have ended, {live - waiting} run, and "
            f"{count - attempt.born + waiting} wait"
        )

    def _frontier(self, array: str) -> tuple[int, Attempt]:
        held = self._mirror.get(Kind.ATTEMPT, array)
        if held is None:
            return 0, NO_ATTEMPT
        assert isinstance(held.value, Attempt)
        return held.mod_revision, held.value
