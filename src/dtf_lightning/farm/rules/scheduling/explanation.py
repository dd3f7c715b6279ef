"""Says in one sentence why a task does not run, with the counts."""

from __future__ import annotations

from collections.abc import Iterator

from dtf_lightning.farm.rules.needs import MEMORY, SECRET, in_words, scarce_first
from dtf_lightning.farm.rules.scheduling.backlog import Backlog, listed_rank
from dtf_lightning.farm.rules.scheduling.licences import Licences
from dtf_lightning.farm.rules.scheduling.pool import WorkerPool
from dtf_lightning.farm.rules.scheduling.projects import Queue, Task
from dtf_lightning.farm.rules.scheduling.shapes import Shape, ShapeKey
from dtf_lightning.farm.rules.scheduling.worker_classes import Demand, Worker, WorkerClass, fits

NAMED = 3
"""Workers and projects that are named; of more only the number is said."""


def why_it_waits(task: Task, backlog: Backlog, pool: WorkerPool, licences: Licences, now: float) -> str:
    """One sentence on a task that is ready and not placed. Takes time in proportion to its project's tasks."""
    queue = backlog.waiting[task.name]
    shape = queue.shape
    said = [f"waits for {what_it_needs(task.key)}", *_licences(shape, licences), *_workers(shape, pool, now)]
    if shape.options:
        said += [*_ahead(task, queue), *_projects_first(queue, backlog)]
    return "; ".join(said)


def what_it_needs(key: ShapeKey) -> str:
    """`2 x gpu, 4 x cpu` or `8 workers with 1 x gpu each, or 16 x cpu`."""
    needs = ", or ".join(_demand(demand) for demand in key.demands)
    return needs if key.gang == 1 else f"{key.gang} workers at once with {needs} each"


def _demand(demand: Demand) -> str:
    words = ", ".join(
        _amount(name, amount) for name, amount in sorted(demand.amounts, key=lambda pair: scarce_first(pair[0]))
    )
    if demand.labels:
        words += f" on a worker {_carrying(demand.labels)}"
    return f"{words}, with nothing else on the worker" if demand.exclusive else words


def _amount(name: str, amount: int) -> str:
    return f"{in_words(amount)} MiB of memory" if name == MEMORY else f"{in_words(amount)} x {name}"


def _licences(shape: Shape, licences: Licences) -> Iterator[str]:
    for name, units in shape.key.limits:
        total, free = licences.totals.get(name, 0), licences.free(name)
        if units > total:
            yield f"it needs {units} of the limit {name}, of which the farm has {total}: it can never start"
        elif units > free:
            yield f"it needs {units} of the limit {name}, {free} of {total} {_are(free)} free"
        elif not shape.admitted:
            yield f"tasks before it wait for the limit {name}, {free} of {total} {_are(free)} free"


def _workers(shape: Shape, pool: WorkerPool, now: float) -> Iterator[str]:
    gang = shape.key.gang
    if not shape.options:
        yield "; ".join(_what_is_missing(demand, pool) for demand in shape.key.demands)
        return
    able = {worker.number: worker for option in shape.options for worker in option.cls.workers.values()}
    accepting = {number: worker for number, worker in able.items() if worker.accepting}
    left = [worker for worker in accepting.values() if worker.name not in shape.barred]
    if not accepting:
        yield f"{_number(len(able), 'worker')} {_have(len(able))} that, but {_take(len(able))} no new tasks"
    elif len(left) < gang:
        yield f"only {len(left)} of the {gang} workers that it needs at once {_are(len(left))} there"
    else:
        yield f"{_number(len(left), 'worker')} {_have(len(left))} that, {_when(shape, left, now)}"
    failed_on = len(accepting) - len(left)
    if failed_on:
        yield f"{_number(failed_on, 'worker')} that it is to avoid {_have(failed_on)} it, too"


def _when(shape: Shape, able: list[Worker], now: float) -> str:
    gang = shape.key.gang
    which = "the earliest is" if gang == 1 else f"{gang} of them are"
    if shape.reservation is not None:
        kept = shape.reservation.workers
        names = _listed(tuple(worker.name for worker in kept)) if len(kept) <= NAMED else f"{len(kept)} of them"
        return f"{names} {_are(len(kept))} held free for it{_in_about(shape.reservation.ready, now, ' and ready')}"
    at = sorted(
        min(worker.free_at(option.wanted, now)[0] for option in shape.by_class[worker.cls.serial])
        for worker in able
        if worker.cls is not None
    )[gang - 1]
    reserved = sum(worker.reservation is not None and worker.reservation.by_people for worker in able)
    if reserved:
        return f"{reserved} of them {_are(reserved)} reserved (dtf farm reservation list)"
    if at > now:
        return f"{which} free{_in_about(at, now, '')}" if at < float("inf") else "nobody knows when one will be free"
    held = sum(worker.reservation is not None and _has_room(shape, worker) for worker in able)
    if held:
        return f"{held} of them with room {_are(held)} held free for tasks that have waited for longer"
    return f"{which} free by now"


def _has_room(shape: Shape, worker: Worker) -> bool:
    assert worker.cls is not None
    return any(fits(worker.room, option.wanted) for option in shape.by_class[worker.cls.serial])


def _in_about(at: float, now: float, what: str) -> str:
    if at == float("inf"):
        return ", nobody knows until when"
    return f"{what} in about {max(0.0, at - now):.0f} s" if at > now else f"{what} any moment"


def _what_is_missing(demand: Demand, pool: WorkerPool) -> str:
    """Why no worker could ever run it."""
    classes = list(pool.classes.values())
    if not classes:
        return "there are no workers"
    labelled = [cls for cls in classes if cls.labels.issuperset(demand.labels)]
    if not labelled:
        alone = [label for label in demand.labels if not any(label in cls.labels for cls in classes)]
        return f"no worker {_carries(tuple(alone) or demand.labels)}"
    for name, amount in demand.amounts:
        most = max(_has(cls, name) for cls in labelled)
        if not most:
            return f"no worker{_with(demand)} has {name}"
        if most < amount:
            return f"no worker{_with(demand)} has more than {_amount(name, most)}"
    return f"no worker{_with(demand)} has all of that together"


def _with(demand: Demand) -> str:
    return f" {_carrying(demand.labels)}" if demand.labels else ""


def _carrying(labels: tuple[str, ...]) -> str:
    """`labelled ssd`, `with the secret HF_TOKEN`, or both."""
    plain, secrets = _divided(labels)
    said = [f"labelled {_listed(plain)}"] if plain else []
    return " and ".join([*said, f"with {_secrets(secrets)}"] if secrets else said)


def _carries(labels: tuple[str, ...]) -> str:
    """`is labelled ssd`, `has the secret HF_TOKEN`, or both."""
    plain, secrets = _divided(labels)
    said = [f"is labelled {_listed(plain)}"] if plain else []
    return " and ".join([*said, f"has {_secrets(secrets)}"] if secrets else said)


def _divided(labels: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    plain = tuple(label for label in labels if not label.startswith(SECRET))
    return plain, tuple(label.removeprefix(SECRET) for label in labels if label.startswith(SECRET))


def _secrets(names: tuple[str, ...]) -> str:
    return f"the secret{'s' * (len(names) > 1)} {_listed(names)}"


def _has(cls: WorkerClass, resource: str) -> int:
    return dict(zip(cls.key.resources, cls.key.total, strict=True)).get(resource, 0)


def _ahead(task: Task, queue: Queue) -> Iterator[str]:
    """Tasks of the same project that come before it on the same workers."""
    ahead = sum(
        sum(other.rank < task.rank for other in rival.tasks.values())
        for rival in queue.project.listing
        if listed_rank(rival) < task.rank and rival.shape.by_class.keys() & queue.shape.by_class.keys()
    )
    if ahead:
        yield f"{_number(ahead, 'task')} of project {queue.project.name} {_are(ahead)} ahead"


def _projects_first(queue: Queue, backlog: Backlog) -> Iterator[str]:
    """Projects with a smaller share that wait for the same workers."""
    first = sorted(
        project.name
        for project in backlog.active.values()
        if project.share < queue.project.share
        and any(rival.shape.by_class.keys() & queue.shape.by_class.keys() for rival in project.listing)
    )
    if first:
        names = (
            f"project{'s' * (len(first) > 1)} {_listed(tuple(first))}"
            if len(first) <= NAMED
            else f"{len(first)} projects"
        )
        yield f"{names} with a smaller share of the farm {'comes' if len(first) == 1 else 'come'} first"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _take(number: int) -> str:
    return "takes" if number == 1 else "take"
