"""Who gives a device back, beside a slow rule that tries every set of parts."""

from __future__ import annotations

import random
from itertools import chain, combinations

import pytest

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import Seat
from dtf_lightning.farm.rules.scheduling.yielding import (
    AWAY,
    MOST_AWAY,
    PRICE,
    Part,
    Wish,
    may_grow,
    time_away,
    who_yields,
)


def cpus(number):
    return Need(amounts={"cpu": number})


def amount(need):
    return round(need.amounts["cpu"] * 1000)


def seat(total, free, **rest):
    return Seat(total={"cpu": total * 1000}, free={"cpu": free * 1000}, **rest)


def part(task, worker="w", training="t", *, minimum=0, priority=-10, need=1, **rest):
    return Part(
        task=task, training=training, minimum=minimum, priority=priority, worker=worker, need=cpus(need), **rest
    )


def wish(task="x", need=1, priority=0, **rest):
    return Wish(task=task, priority=priority, needs=(cpus(need),), **rest)


def asked(wishes, seats, parts, now=1000.0):
    return [one.part for one in who_yields(wishes, seats, parts, now).asked]


def world(chance):
    """A small farm whose rooms add up: what is not free is held by parts or by ordinary tasks."""
    seats, parts = {}, []
    minimum = {"t": chance.randrange(3), "u": chance.randrange(2)}
    suspend_for = {"t": chance.choice([None, None, -5, 0]), "u": chance.choice([None, 0])}
    priorities = {"t": chance.choice([-10, 0]), "u": chance.choice([-10, 0])}
    needs = {"t": chance.randint(1, 2), "u": chance.randint(1, 2)}
    for worker in ("v", "w")[: chance.randint(1, 2)]:
        total = chance.randint(1, 5)
        free = total
        for number in range(chance.randrange(4)):
            training = chance.choice(["t", "u"])
            need = needs[training]
            if free >= need:
                free -= need
                name = f"{worker}{number}"
                stay = {"since": chance.choice([0.0, 990.0]), "asked": chance.random() < 0.2}
                stay |= {"suspend_for": suspend_for[training], "priority": priorities[training]}
                parts.append(part(name, worker, training, minimum=minimum[training], need=need, **stay))
        seats[worker] = seat(total, chance.randint(0, free), accepting=chance.random() < 0.9)
    wishes = [
        wish(f"x{number}", chance.randint(1, 4), chance.choice([-10, -5, 0])) for number in range(chance.randint(1, 4))
    ]
    return wishes, seats, parts


def gets_all(one, it):
    return it.suspend_for is not None and one.priority >= it.suspend_for and one.priority > it.priority


def smallest(one, seats, free, left, surplus, *, suspends=False):
    """The number of parts in the smallest set that makes room for a task, over all sets of all workers; `None`: none does.

    `suspends`: trainings that give all of theirs may be asked for it.
    """
    sizes = []
    (need,) = one.needs
    for worker, there in seats.items():
        if not there.accepting or there.total["cpu"] < amount(need):
            continue
        able = [it for it in left if it.worker == worker and it.priority <= one.priority]
        for some in chain.from_iterable(combinations(able, size) for size in range(len(able) + 1)):
            is_allowed = all(
                sum(it.training == name for it in some) <= max(0, over)
                or (suspends and all(gets_all(one, it) for it in some if it.training == name))
                for name, over in surplus.items()
            )
            if is_allowed and free[worker] + sum(amount(it.need) for it in some) >= amount(need):
                sizes.append(len(some))
    return min(sizes, default=None)


def test_as_a_slow_rule_that_tries_every_set():
    """A task that some set of parts could help is helped, by no more than it needs; what helps nobody is not asked."""
    num_asked = num_suspended = 0
    for seed in range(4000):
        wishes, seats, parts = world(random.Random(seed))
        answer = who_yields(wishes, seats, parts, 1000.0)
        by_name = {it.task: it for it in parts}
        free = {worker: there.free["cpu"] for worker, there in seats.items()}
        surplus, left = {}, []
        for it in parts:
            if it.asked:
                free[it.worker] += amount(it.need)
            else:
                left.append(it)
                surplus[it.training] = surplus.get(it.training, -it.minimum) + 1
        for one in wishes:
            mine = [by_name[given.part] for given in answer.asked if given.wanted_by == one.task]
            least = smallest(one, seats, free, left, surplus)
            (need,) = one.needs
            if not mine:
                assert not least, (seed, one)  # nothing could help, or there is room
                assert least == 0 or smallest(one, seats, free, left, surplus, suspends=True) is None, (seed, one)
                for worker in sorted(seats) if least == 0 else ():
                    if seats[worker].accepting and free[worker] >= amount(need):
                        free[worker] -= amount(need)
                        break
                continue
            num_asked += len(mine)
            over = {name for name, more in surplus.items() if sum(it.training == name for it in mine) > max(0, more)}
            if over:
                num_suspended += 1
                assert least is None, seed  # nothing else would have helped
                assert all(gets_all(one, it) for it in mine if it.training in over), seed
                assert {it.task for it in left if it.training in over} <= {it.task for it in mine}, seed  # all of it
                assert any(
                    seats[worker].accepting
                    and free[worker] + sum(amount(it.need) for it in mine if it.worker == worker) >= amount(need)
                    for worker in seats
                ), seed
                break  # where it goes is not told, so that the rest cannot be followed
            (worker,) = {it.worker for it in mine}
            given = sum(amount(it.need) for it in mine)
            assert all(it in left and it.priority <= one.priority for it in mine), seed
            assert free[worker] + given >= amount(need), seed
            assert all(free[worker] + given - amount(it.need) < amount(need) for it in mine), seed
            for it in mine:
                left.remove(it)
                surplus[it.training] -= 1
                assert surplus[it.training] >= 0, seed
            free[worker] += given - amount(need)
            assert least is not None
    assert num_asked > 300
    assert num_suspended > 100


def test_ordinary_order_of_choice():
    seats = {"v": seat(1, 0), "w": seat(1, 0)}
    small, large = part("a", "v", "small", minimum=1), part("b", "w", "large")
    assert asked([wish()], seats, [small, part("c", "x", "small"), large, part("d", "x", "large")]) == [
        "b"
    ]  # the larger surplus
    fresh, settled = part("a", "v", since=995.0), part("b", "w", since=0.0)
    assert asked([wish()], seats, [fresh, settled]) == ["b"]
    assert asked([wish()], seats, [fresh]) == ["a"]  # rather than that work waits


def test_its_minimum_is_kept_and_lower_work_waits():
    seats = {"w": seat(2, 0)}
    parts = [part("a", minimum=1), part("b", minimum=1)]
    assert len(asked([wish("x"), wish("y")], seats, parts)) == 1
    assert asked([wish(priority=-11)], seats, parts) == []


def test_room_to_come_counts():
    parts = [part("a", asked=True), part("b")]
    assert asked([wish("x")], {"w": seat(2, 0)}, parts) == []
    assert asked([wish("x"), wish("y")], {"w": seat(2, 0)}, parts) == ["b"]


def test_a_gang_gets_all_of_its_workers_or_none():
    seats = {"v": seat(1, 0), "w": seat(1, 0)}
    parts = [part("a", "v"), part("b", "w")]
    assert sorted(asked([wish(gang=2)], seats, parts)) == ["a", "b"]
    assert asked([wish(gang=3)], seats, parts) == []
    assert asked([wish(gang=2, excluded=("v",))], seats, parts) == []


@pytest.mark.parametrize(("promised", "grows"), [((), True), (("w",), False), (("small",), True), (("gone",), True)])
def test_it_grows_where_no_device_is_on_its_way_to_others(promised, grows):
    seats = {"w": seat(2, 2), "small": seat(1, 1)}
    assert may_grow(cpus(2), promised, seats) is grows


@pytest.mark.parametrize(
    ("leaves", "away"),
    [
        ([], AWAY),
        ([0.1], AWAY),
        ([6.0, 5.0, 900.0], PRICE * 6.0),  # one that was killed says little of the others
        ([5.0, 8.0], PRICE * 5.0),
        ([45.0] * 9, MOST_AWAY),
    ],
)
def test_how_long_it_stays_away(leaves, away):
    assert time_away(leaves) == away


def test_longer_leaves_never_bring_it_back_earlier():
    chance = random.Random(0)
    for _ in range(300):
        leaves = [chance.uniform(0.0, 60.0) for _ in range(chance.randint(1, 9))]
        longer = [one + chance.uniform(0.0, 20.0) for one in leaves]
        assert AWAY <= time_away(leaves) <= time_away(longer) <= MOST_AWAY


def rooms(seats, free, need):
    """How often a need fits into what is free, over all workers."""
    return sum(max(0, free[worker]) // amount(need) for worker, there in seats.items() if there.accepting)


def test_slots_lie_as_they_fit():
    """Where all is free they are placed at once, and nobody is asked; what is asked is enough, and nobody's minimum is touched."""
    num_placed = num_asked = 0
    for seed in range(3000):
        chance = random.Random(seed)
        _, seats, parts = world(chance)
        need = chance.randint(1, 2)
        one = Wish(task="x", priority=chance.choice([-10, 0]), needs=(cpus(need),), slots=chance.randint(2, 4))
        answer = who_yields([one], seats, parts, 1000.0)
        now = {worker: there.free["cpu"] for worker, there in seats.items()}
        coming = {
            worker: now[worker] + sum(amount(it.need) for it in parts if it.worker == worker and it.asked)
            for worker in now
        }
        given = [it for it in parts if it.task in {yields.part for yields in answer.asked}]
        after = {worker: coming[worker] + sum(amount(it.need) for it in given if it.worker == worker) for worker in now}
        if rooms(seats, now, cpus(need)) >= one.slots:
            workers = answer.places["x"].workers
            assert len(workers) == one.slots, seed
            assert not given, seed
            assert all(workers.count(worker) * need * 1000 <= now[worker] for worker in workers), seed
            num_placed += 1
        else:
            assert not answer.places, seed
        if given:
            assert rooms(seats, after, cpus(need)) >= one.slots > rooms(seats, coming, cpus(need)), seed
            assert all(it.priority <= one.priority for it in given), seed
            num_asked += 1
        elif all(it.need == cpus(need) and it.suspend_for is None for it in parts):
            surplus = {it.training: -it.minimum for it in parts}
            for it in parts:
                surplus[it.training] += not it.asked
            able = [it for it in parts if not it.asked and it.priority <= one.priority and seats[it.worker].accepting]
            could = sum(min(max(0, more), sum(it.training == name for it in able)) for name, more in surplus.items())
            if rooms(seats, coming, cpus(need)) < one.slots and all(
                value % (need * 1000) == 0 for value in coming.values()
            ):
                assert rooms(seats, coming, cpus(need)) + could < one.slots, seed
    assert num_placed > 200
    assert num_asked > 100


def test_what_is_held_for_another_way_of_the_same_training_is_its_own():
    held = {"v": seat(2, 2, held_for=7), "w": seat(1, 1, held_for=8)}
    one = Wish(task="x", priority=0, needs=(cpus(1),), slots=3, kinds=frozenset({7, 8}))
    assert sorted(who_yields([one], held, [], 0.0).places["x"].workers) == ["v", "v", "w"]
    other = Wish(task="x", priority=0, needs=(cpus(1),), slots=3, kinds=frozenset({7}))
    assert not who_yields([other], held, [], 0.0).places


def test_slots_leave_what_others_get():
    """A task that stands before them gets its worker; with what is left there is no room for all."""
    seats = {"v": seat(2, 2), "w": seat(1, 1)}
    one = Wish(task="y", priority=0, needs=(cpus(1),), slots=3)
    assert not who_yields([wish("x"), one], seats, [], 0.0).places
    assert who_yields([one, wish("x")], seats, [], 0.0).places
