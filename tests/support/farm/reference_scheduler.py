"""The scheduler's rules once more, slow and obvious: everything is looked at anew for every single decision.

It shares with the real one only the values, the strategies and the rounding of amounts. What the real one remembers
(who sleeps, which workers are fresh, buckets, skylines) does not exist here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dtf_lightning.farm.rules.needs import DEFAULT_NEED, asked, offered, scarce_first
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.strategies import Candidate, FairShare, Looks
from dtf_lightning.farm.rules.watching.devices import device_class

INFINITY = float("inf")


@dataclass
class Running:
    ready: ReadyTask
    workers: tuple
    alternative: int
    began: float | None
    promised: bool
    held: dict


@dataclass
class Queue:
    """What a project's waiting tasks of one shape have lived through."""

    started: bool = False
    overtaken: int = 0
    passed: int = 0
    since: float | None = None


@dataclass
class Held:
    workers: tuple
    ready: float
    late: bool


@dataclass
class ReferenceScheduler:
    strategy: object = field(default_factory=FairShare)
    settings: SchedulerSettings = field(default_factory=SchedulerSettings)
    offers: dict = field(default_factory=dict)
    numbers: dict = field(default_factory=dict)
    turns: dict = field(default_factory=dict)
    waiting: dict = field(default_factory=dict)
    placed: dict = field(default_factory=dict)
    plans: dict = field(default_factory=dict)
    ranks: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    totals: dict = field(default_factory=dict)
    queues: dict = field(default_factory=dict)
    reservations: dict = field(default_factory=dict)
    recent: list = field(default_factory=list)
    counted: int = 0
    last_look: float = -INFINITY

    # --- events ---

    def task_ready(self, task):
        rank = self._rank(task)
        self.task_gone(task.task)
        self.ranks[task.task] = rank
        self.waiting[task.task] = task
        self._tidy()

    def task_placed(self, ready, workers, alternative):
        task = ready.task
        workers = tuple(dict.fromkeys(workers))
        known = self.placed.get(task)
        if known and (known.workers, known.alternative) == (workers, alternative):
            known.promised = False
            return
        rank = self._rank(ready)
        self.task_gone(task)
        self.ranks[task] = rank
        self._place(ready, workers, alternative, None, promised=False)
        self._tidy()

    def task_gone(self, task):
        known = self.waiting.pop(task, None) or getattr(self.placed.pop(task, None), "ready", None)
        if known is not None:
            del self.ranks[task]
            if known.plan:
                self.plans[known.plan][1] -= 1
                if not self.plans[known.plan][1]:
                    del self.plans[known.plan]
        self._tidy()

    def placement_refused(self, task):
        if task in self.placed and self.placed[task].promised:
            self.waiting[task] = self.placed.pop(task).ready
            self._tidy()

    def worker_offers(self, offer):
        before = self.offers.get(offer.worker)
        self.offers[offer.worker] = offer
        self._number(offer.worker)
        if before is None or self._class(before) != self._class(offer) or before.accepting != offer.accepting:
            self._unreserve_worker(offer.worker)
        self._tidy()

    def worker_gone(self, worker):
        if self.offers.pop(worker, None) is not None:
            self._unreserve_worker(worker)
        self._tidy()

    def project(self, name, weight):
        self.weights[name] = weight

    def licences(self, totals):
        self.totals = dict(totals)

    # --- decisions ---

    def decide(self, at_most, now):
        for running in self.placed.values():
            running.began = now if running.began is None else running.began
        if abs(now - self.last_look) >= self.settings.look_every:
            self.last_look = now
            self._look(now)
        decided = []
        while len(decided) < at_most:
            placement = self._one(now)
            if placement is None:
                break
            decided.append(placement)
        return decided

    def _one(self, now):
        firsts = self._firsts()
        admitted = self._admitted(firsts, now)
        projects = sorted(firsts, key=lambda p: (self._share(p), min(self._rank_of(t) for t in firsts[p].values()), p))
        for project in projects:
            for shape, task in sorted(firsts[project].items(), key=lambda item: self._rank_of(item[1])):
                if shape[3] and shape not in admitted:
                    continue
                found = self._find(task, shape, now)
                if found is not None:
                    return self._start(task, shape, found, now)
        return None

    def _start(self, task, shape, found, now):
        names, alternative = found
        queue = self.queues[task.project, shape]
        queue.started, queue.overtaken, queue.passed = True, 0, 0
        if shape not in self.reservations:
            queue.since = None
        self.reservations.pop(shape, None)
        for key in dict.fromkeys(self._class(self.offers[name]) for name in names):
            self.recent.append((key, task.project, self._rank_of(task)))
        del self.waiting[task.task]
        self._place(task, names, alternative, now, promised=True)
        self._tidy()
        return Placement(task=task.task, workers=names, alternative=alternative)

    def _firsts(self):
        """Project -> shape -> its task of the best rank."""
        firsts = {}
        for task in sorted(self.waiting.values(), key=self._rank_of):
            firsts.setdefault(task.project, {}).setdefault(shape_of(task), task)
        return firsts

    def _admitted(self, firsts, now):
        """Shapes whose turn it is at all of their licences."""
        best = {}
        for project in firsts:
            for shape, task in firsts[project].items():
                if shape[3] and (shape not in best or self._rank_of(task) < self._rank_of(best[shape])):
                    best[shape] = task
        admitted, claimed = set(), {}
        for shape, task in sorted(best.items(), key=lambda item: self._rank_of(item[1])):
            if self._find(task, shape, now) is None:
                continue
            if all(self._free_units(name) - claimed.get(name, 0) >= units for name, units in shape[3]):
                admitted.add(shape)
            for name, units in shape[3]:
                claimed[name] = claimed.get(name, 0) + units
        return admitted

    def _find(self, task, shape, now):
        if shape[1] > 1:
            return self._find_gang(shape)
        options = self._options(shape)
        if task.speeds and getattr(self.strategy, "by_speed", False):
            options = [
                (self.strategy.class_order(which, cost, speed_of(task, key)), which, cost, key, name)
                for _, which, cost, key, name in options
            ]
        best = None
        for option in options:
            group, alternative, cost, key, name = option
            if self._reservation(name) is not None or not self._fits(name, shape[0][alternative]):
                continue
            compared = ()
            if self.strategy.looks is Looks.ALWAYS or task.near:
                held = len(set(task.near) & self.offers[name].cached)
                total = key[1]
                room = self._room(name)
                load = max(((has - free) / has for has, free in zip(total, room, strict=True)), default=0.0)
                compared = self.strategy.worker_order(
                    Candidate(name, alternative, cost, key[4], load, held, self.turns.get(name, 0))
                )
            order = (group, compared, alternative, cost, key, self._room(name), self.numbers[name])
            if not compared:
                order = (group, alternative, cost, key, self._room(name), self.numbers[name])
            if best is None or order < best[0]:
                best = order, ((name,), alternative)
        if best is not None:
            return best[1]
        mine = self.reservations.get(shape)
        reserved = sorted({n for held in self.reservations.values() for n in held.workers}, key=self.numbers.get)
        for wanted in ("own", "in time"):
            for name in reserved:
                held = self._reservation(name)
                for option in options:
                    if option[4] == name and self._fits(name, shape[0][option[1]]):
                        in_time = (
                            task.expected is not None
                            and now + task.expected / speed_of(task, option[3]) <= held.ready
                            and held.ready < INFINITY
                        )
                        if held is mine if wanted == "own" else in_time:
                            return (name,), option[1]
                        break
        return None

    def _find_gang(self, shape):
        mine = self.reservations.get(shape)
        for alternative, demand in enumerate(shape[0]):
            by_class = {}
            for _, which, _, key, name in self._options(shape):
                held = self._reservation(name)
                if which == alternative and (held is None or held is mine) and self._fits(name, demand):
                    place = list(mine.workers).index(name) if held is not None else -1
                    by_class.setdefault(key, []).append(
                        (held is None, place, self._room(name) if held is None else (), self.numbers[name], name)
                    )
            together = []
            for found in by_class.values():
                names = [entry[-1] for entry in sorted(found)][: shape[1]]
                if len(names) == shape[1]:
                    return tuple(names), alternative
                together += names
            if len(together) >= shape[1]:
                return tuple(together[: shape[1]]), alternative
        return None

    # --- reservations ---

    def _look(self, now):
        firsts = self._firsts()
        queues = []
        for project in firsts:
            for shape, task in firsts[project].items():
                if all(self._free_units(name) >= units for name, units in shape[3]):
                    queues.append((self._rank_of(task), project, shape, self.queues[project, shape]))
        for rank, project, shape, queue in queues:
            if queue.started:
                queue.started = False
                continue
            able = {key for _, _, _, key, _ in self._options(shape, everybody=True)}
            for key, other, their_rank in self.recent:
                if key in able:
                    queue.passed += their_rank > rank
                    queue.overtaken += (
                        their_rank > rank if other == project else self._share(other) > self._share(project)
                    )
            if queue.overtaken or queue.passed:
                queue.since = now if queue.since is None else min(now, queue.since)
        self.recent = []
        if len(self.reservations) >= self.settings.max_reservations:
            return
        for _, _, shape, queue in sorted(queues, key=lambda entry: entry[0]):
            if shape in self.reservations or queue.since is None:
                continue
            waited = now - queue.since
            if queue.overtaken >= self.settings.overtaken and waited >= self.settings.reserve_after:
                self._reserve(shape, now, late=False)
            elif (
                queue.passed >= self.settings.overtaken
                and waited >= self.settings.starve_after
                and not any(held.late for held in self.reservations.values())
            ):
                self._reserve(shape, now, late=True)
            if shape in self.reservations:
                return  # one a look

    def _reserve(self, shape, now, late):
        best = None
        for alternative, demand in enumerate(shape[0]):
            able = []
            for _, which, _, key, name in self._options(shape):
                if which != alternative or self._reservation(name) is not None:
                    continue
                room, at, ended = self._room(name), now, 0
                ends = sorted((self._end(task, name), task) for task, run in self.placed.items() if name in run.workers)
                for end, task in ends:
                    if all(has >= needs for has, needs in zip(room, wanted(key, demand), strict=True)):
                        break
                    taken = self._taken(task, name)
                    room = tuple(has + back for has, back in zip(room, taken, strict=True))
                    at, ended = max(at, end), ended + 1
                able.append((at, ended, self.numbers[name], name))
            able.sort()
            if len(able) >= shape[1] and (best is None or able[shape[1] - 1][0] < best.ready):
                best = Held(tuple(entry[-1] for entry in able[: shape[1]]), able[shape[1] - 1][0], late)
        if best is not None:
            self.reservations[shape] = best

    def _reservation(self, name):
        return next((held for held in self.reservations.values() if name in held.workers), None)

    def _unreserve_worker(self, name):
        self.reservations = {shape: held for shape, held in self.reservations.items() if name not in held.workers}

    def _end(self, task, name):
        running = self.placed[task]
        if running.ready.expected is None or running.began is None:
            return INFINITY
        return running.began + running.ready.expected / speed_of(running.ready, self._class(self.offers[name]))

    # --- what is there ---

    def _rank(self, task):
        submitted = task.submitted
        if task.plan:
            self.plans.setdefault(task.plan, [submitted, 0])[1] += 1
            submitted = self.plans[task.plan][0]
        longest = INFINITY if task.expected is None else task.expected
        return submitted - task.priority * self.settings.age, -longest, task.sequence, task.task

    def _rank_of(self, task):
        return self.ranks[task.task]

    def _number(self, name):
        if name not in self.numbers:
            self.counted += 1
            self.numbers[name] = self.counted

    def _place(self, task, workers, alternative, began, *, promised):
        demands = shape_of(task)[0]
        demand = demands[alternative] if 0 <= alternative < len(demands) else demands[0]
        held = {}
        self.turn = getattr(self, "turn", 0) + 1
        for name in workers:
            self._number(name)
            self.turns[name] = self.turn
            amounts = dict(demand[0])
            if demand[2] and name in self.offers:
                key = self._class(self.offers[name])
                amounts = dict(zip(key[0], key[1], strict=True))
            for resource, amount in amounts.items():
                held[resource] = held.get(resource, 0) + amount
        self.placed[task.task] = Running(task, workers, alternative, began, promised, held)

    def _tidy(self):
        """Forget workers, queues and reservations that nobody speaks of any more."""
        known = {name for running in self.placed.values() for name in running.workers} | self.offers.keys()
        self.numbers = {name: number for name, number in self.numbers.items() if name in known}
        self.turns = {name: turn for name, turn in self.turns.items() if name in known}
        there = {(task.project, shape_of(task)) for task in self.waiting.values()}
        self.queues = {key: self.queues.get(key) or Queue() for key in there}
        self.reservations = {k: held for k, held in self.reservations.items() if k in {shape for _, shape in there}}
        classes = {self._class(offer) for offer in self.offers.values()}
        self.recent = [entry for entry in self.recent if entry[0] in classes]

    def _share(self, project):
        capacity, held = {}, {}
        for offer in self.offers.values():
            key = self._class(offer)
            for resource, amount in zip(key[0], key[1], strict=True):
                capacity[resource] = capacity.get(resource, 0) + amount
        for running in self.placed.values():
            if running.ready.project == project:
                for resource, amount in running.held.items():
                    held[resource] = held.get(resource, 0) + amount
        parts = [amount / capacity[name] for name, amount in held.items() if capacity.get(name)]
        return max(parts, default=0.0) / self.weights.get(project, 1.0)

    def _free_units(self, licence):
        held = sum(dict(shape_of(running.ready)[3]).get(licence, 0) for running in self.placed.values())
        return self.totals.get(licence, 0) - held

    def _class(self, offer):
        amounts = {name: has for name, amount in offer.devices.items() if (has := offered(amount))}
        resources = tuple(sorted(amounts, key=scarce_first))
        return (
            resources,
            tuple(amounts[name] for name in resources),
            tuple(sorted(set(offer.labels))),
            offer.cost,
            offer.speed,
        )

    def _options(self, shape, everybody=False):
        """Who could run it: (group, alternative, cost, class, worker), in the order of their use."""
        demands, gang, excluded, _ = shape
        found = []
        for name, offer in self.offers.items():
            key = self._class(offer)
            for alternative, demand in enumerate(demands):
                if wanted(key, demand) is not None and (offer.accepting or everybody):
                    group = self.strategy.class_order(alternative, key[3], key[4])
                    found.append((group, alternative, key[3], key, name))
        enough = any(
            sum(option[1] == alternative and option[4] not in excluded for option in found) >= gang
            for alternative in range(len(demands))
        )
        if enough and not everybody:
            found = [option for option in found if option[4] not in excluded]
        return sorted(found, key=lambda option: (*option[:4], self.numbers[option[4]]))

    def _taken(self, task, name):
        running, key = self.placed[task], self._class(self.offers[name])
        demands = shape_of(running.ready)[0]
        amounts, _, exclusive = demands[running.alternative if 0 <= running.alternative < len(demands) else 0]
        return key[1] if exclusive else tuple(dict(amounts).get(resource, 0) for resource in key[0])

    def _room(self, name):
        room = self._class(self.offers[name])[1]
        for task, running in self.placed.items():
            if name in running.workers:
                room = tuple(has - taken for has, taken in zip(room, self._taken(task, name), strict=True))
        return room

    def _fits(self, name, demand):
        needs = wanted(self._class(self.offers[name]), demand)
        return needs is not None and all(has >= need for has, need in zip(self._room(name), needs, strict=True))


def speed_of(task, key):
    """How many times as fast as expected a task is on a worker of this class."""
    return task.speeds.get(device_class(dict(zip(key[0], key[1], strict=True)), key[2]), key[4])


def shape_of(task):
    """(demands, gang, excluded, licences): what makes tasks interchangeable."""
    demands = []
    for need in task.needs or (DEFAULT_NEED,):
        amounts = tuple(sorted((name, asked(amount)) for name, amount in need.amounts.items() if asked(amount)))
        demands.append((amounts or (("cpu", 1000),), tuple(sorted(set(need.labels))), need.exclusive))
    limits = tuple(sorted((name, units) for name, units in task.limits.items() if units > 0))
    return tuple(demands), max(1, task.gang), tuple(sorted(set(task.excluded))), limits


def wanted(key, demand):
    """What a task takes of a worker of this class; `None` if it could never run there."""
    resources, total, labels, *_ = key
    amounts, needed, exclusive = demand
    if not set(needed) <= set(labels) or not {name for name, _ in amounts} <= set(resources):
        return None
    vector = tuple(dict(amounts).get(name, 0) for name in resources)
    if any(need > has for need, has in zip(vector, total, strict=True)):
        return None
    return total if exclusive else vector
