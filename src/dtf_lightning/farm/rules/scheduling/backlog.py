"""Every task that waits, by project and shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dtf_lightning.farm.rules.scheduling.door import ReadyTask
from dtf_lightning.farm.rules.scheduling.projects import Project, Queue, Rank, Task
from dtf_lightning.farm.rules.scheduling.shapes import Shape, ShapeKey


class Backlog:
    """Tasks from when they are ready until they are placed or gone.

    A plan's tasks count as submitted when its first one was that is known here: they come in chunks, and the longest of
    all of them goes first.
    """

    def __init__(self, age: float) -> None:
        self.projects: dict[str, Project] = {}
        self.active: dict[str, Project] = {}
        """Those that have tasks waiting."""
        self.shapes: dict[ShapeKey, Shape] = {}
        self.waiting: dict[str, Queue] = {}
        """Task -> the queue where it waits."""
        self.awake: dict[int, Shape] = {}
        """Shapes that look at all workers; as the next ones by their serial numbers."""
        self.limited: dict[int, Shape] = {}
        """Shapes whose tasks hold licences."""
        self.excluding: dict[int, Shape] = {}
        """Shapes that exclude workers."""
        self._age = age
        self._plans: dict[str, list[float]] = {}
        """Plan -> [submitted, how many of its tasks are known]."""
        self._serial = 0

    def project(self, name: str) -> Project:
        """The project of this name, from now on known."""
        project = self.projects.get(name)
        if project is None:
            project = self.projects[name] = Project(name)
        return project

    def know(self, ready: ReadyTask) -> Task:
        """A task with its rank; to be forgotten by `forget`."""
        submitted = ready.submitted
        if ready.plan:
            plan = self._plans.setdefault(ready.plan, [submitted, 0])
            plan[1] += 1
            submitted = plan[0]
        longest = float("inf") if ready.expected is None else ready.expected
        rank: Rank = (submitted - ready.priority * self._age, -longest, ready.sequence, ready.task)
        key = ShapeKey.of(ready)
        shape = self.shapes.get(key)
        key = key if shape is None else shape.key
        return Task(ready.task, ready.project, ready.plan, rank, ready.expected, key, ready.near, ready.speeds)

    def forget(self, task: Task) -> None:
        """It is neither waiting nor placed any more."""
        plan = self._plans.get(task.plan)
        if plan is not None:
            plan[1] -= 1
            if not plan[1]:
                del self._plans[task.plan]

    def add(self, task: Task) -> Shape | None:
        """A task waits; returns its shape if that is new."""
        shape, new = self.shapes.get(task.key), None
        if shape is None:
            self._serial += 1
            shape = new = self.shapes[task.key] = Shape(task.key, self._serial)
            self.awake[shape.serial] = shape
            if task.key.limits:
                self.limited[shape.serial] = shape
            if task.key.excluded:
                self.excluding[shape.serial] = shape
        project = self.project(task.project)
        queue = project.queues.get(task.key)
        if queue is None:
            queue = project.queues[task.key] = Queue(project, shape)
            shape.queues[project.name] = None
        queue.push(task)
        self.active[project.name] = project
        self.waiting[task.name] = queue
        project.list_anew(queue)
        return new

    def remove(self, name: str) -> tuple[Task, Queue, bool]:
        """A task does not wait any more: (it, its queue, whether it was the last of its shape)."""
        queue = self.waiting.pop(name)
        task = queue.tasks[name]
        queue.discard(name)
        project, shape = queue.project, queue.shape
        project.list_anew(queue)
        if not queue.tasks:
            del project.queues[shape.key]
            del shape.queues[project.name]
            if not project.queues:
                del self.active[project.name]
        if shape.queues:
            return task, queue, False
        del self.shapes[shape.key]
        for registry in (self.awake, self.limited, self.excluding):
            registry.pop(shape.serial, None)
        return task, queue, True

    def queues(self, shape: Shape) -> Iterator[Queue]:
        """One for each project that has tasks of it waiting."""
        return (self.projects[name].queues[shape.key] for name in shape.queues)

    def first_queue(self, shape: Shape) -> Queue:
        """The one whose first task has the best rank."""
        return min(self.queues(shape), key=listed_rank)

    def update_shares(self, capacity: Mapping[str, int]) -> None:
        """The farm has other workers than before."""
        for project in self.projects.values():
            project.update_share(capacity)


def listed_rank(queue: Queue) -> Rank:
    """The rank of its first task. Only for queues that have one."""
    assert queue.listed is not None
    return queue.listed
