"""What the clients of a storm ask for, as a pure function of its seed: tasks, and how each of them may end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from dtf_lightning.farm.record.task_id import instance_id
from dtf_lightning.farm.record.values import TaskOutcome

SIMULATED, REAL = "simulated", "real"
"""Labels of the workers that a task is for."""
SUSPECTED = "the task itself is suspected"
"""Words in the reason of a task that fails because workers were lost with it, which in a storm is nobody's fault."""


GANGS, ARRAYS = 0.06, 0.03
"""Parts of the orders for simulated workers."""
MAX_SEVERAL = 4
"""Members, or instances."""
REUSES = 0.06
"""Part of the orders that may end by the result of another one."""
WORKS = 3
"""Different ones among these, in each project."""


class Character(Enum):
    """What a task does."""

    COMPLETES = "completes"
    FAILS_ONCE = "fails once"
    """And may be tried again."""
    FAILS = "fails"
    CANCELLED = "is cancelled by its client"


_WEIGHTS = {Character.COMPLETES: 85, Character.FAILS_ONCE: 6, Character.FAILS: 5, Character.CANCELLED: 4}

MAY_END = {
    Character.COMPLETES: {TaskOutcome.COMPLETED},
    Character.FAILS_ONCE: {TaskOutcome.COMPLETED},
    Character.FAILS: {TaskOutcome.FAILED},
    Character.CANCELLED: {TaskOutcome.CANCELLED, TaskOutcome.COMPLETED},
}
"""Beside `SKIPPED` behind a task that did not complete, and `FAILED` as suspect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One task of a storm."""

    number: int
    character: Character
    real: bool
    """For a real worker."""
    seconds: float
    """That an attempt takes."""
    after: int | None = None
    """Number of the order that must have completed, among those of the same batch."""
    twice: bool = False
    """Its client asks for it once more, later, with the same id."""
    gang: int = 1
    """Workers that run it together."""
    array: int = 0
    """Instances of it, which the books have beside it; 0: it is no array."""
    work: str = ""
    """Of orders that take a result which is known: what makes them the same work; "": it always runs."""


def plan_orders(
    seed: int, num_tasks: int, *, batch: int, longest: float, num_real: int
) -> tuple[tuple[Order, ...], ...]:
    """Return the orders of a storm, in batches that are submitted together.

    Args:
        batch: most tasks of a batch.
        longest: seconds of the longest attempt.
        num_real: tasks for real workers, spread over all.
    """
    chance = Random(f"orders {seed}")
    real = set(chance.sample(range(num_tasks), min(num_real, num_tasks)))
    batches: list[tuple[Order, ...]] = []
    number = 0
    while number < num_tasks:
        size = min(chance.randint(1, batch), num_tasks - number)
        orders: list[Order] = []
        for position in range(size):
            behind = position > 0 and chance.random() < 0.08
            order = Order(
                number=number + position,
                character=chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0],
                real=number + position in real,
                seconds=round(longest * chance.random() ** 2, 3),
                after=orders[chance.randrange(position)].number if behind else None,
                twice=chance.random() < 0.05,
            )
            orders.append(_known(_several(order, chance), chance, longest))
        batches.append(tuple(orders))
        number += size
    return tuple(batches)


def _several(order: Order, chance: Random) -> Order:
    """Make some orders gangs or arrays. An array is not skipped and not cancelled: all of its instances come to life."""
    dice, size = chance.random(), chance.randint(2, MAX_SEVERAL)
    if order.real or dice >= GANGS + ARRAYS:
        return order
    if dice < GANGS:
        return replace(order, gang=size)
    cancelled = order.character is Character.CANCELLED
    return replace(order, array=size, after=None, character=Character.COMPLETES if cancelled else order.character)


def _known(order: Order, chance: Random, longest: float) -> Order:
    """Let some orders be the same work, for simulated workers, which completes."""
    dice, work = chance.random(), chance.randrange(WORKS)
    if order.real or order.gang > 1 or order.array or dice >= REUSES or order.character is not Character.COMPLETES:
        return order
    return replace(order, work=f"work {work}", seconds=longest / 2)


def tasks_of(task: str, order: Order) -> dict[str, Order]:
    """Return what the books have of an order under its task's id: itself, and the instances of an array."""
    instances = {instance_id(task, index): replace(order, array=0) for index in range(order.array)}
    return {task: order, **instances}


def command(order: Order, runs: str) -> list[str]:
    """Return the command of an order. `runs`: file to which real attempts append that they run."""
    codes = {Character.FAILS_ONCE: (3, 0), Character.FAILS: (3,)}.get(order.character, (0,))
    if not order.real:
        return ["simulate", f"{order.seconds:g}", *map(str, codes)]
    code = "exit 3" if codes == (3,) else 'test "$DTF_FARM_ATTEMPT" -gt 1' if len(codes) > 1 else "true"
    line = '"$DTF_FARM_TASK $DTF_FARM_ATTEMPT $$"'
    return ["sh", "-c", f"echo {line} >> '{runs}'; echo {line}; sleep {order.seconds:g}; {code}"]
