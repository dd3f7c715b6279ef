"""What the scheduler decides in small farms, one rule at a time."""

from __future__ import annotations

import math

import pytest

from dtf_lightning.farm.rules.needs import BEYOND, Need, asked, in_words, offered
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, WorkerOffer
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES

CPU = (Need(amounts={"cpu": 1}),)
WHOLE = (Need(amounts={"cpu": 4}),)


def farm(*offers, strategy="fair_share", **settings):
    """A scheduler with these workers, w0, w1 and so on; a number stands for so many with four cpus."""
    scheduler = ShapeScheduler(STRATEGIES[strategy](), SchedulerSettings(**settings))
    numbered = [{"devices": {"cpu": 4}} for offer in offers for _ in range(offer if isinstance(offer, int) else 0)] + [
        offer for offer in offers if isinstance(offer, dict)
    ]
    for number, offer in enumerate(numbered):
        scheduler.worker_offers(WorkerOffer(worker=f"w{number}", **offer))
    return scheduler


def add(scheduler, *names, needs=CPU, **words):
    for name in names:
        scheduler.task_ready(ReadyTask(task=name, needs=needs, **words))


def started(scheduler, now=0.0, at_most=100):
    """Task -> its workers, in the order of the decisions."""
    return {placement.task: " ".join(placement.workers) for placement in scheduler.decide(at_most, now)}


def one_after_the_other(scheduler, now=0.0):
    """Names of tasks in the order in which one worker for one task takes them."""
    order = []
    while found := list(started(scheduler, now)):
        order += found
        for name in found:
            scheduler.task_gone(name)
    return order


ONE = {"devices": {"cpu": 1}}


# --- order ---


def test_shares_are_equal_however_many_tasks_wait():
    """A hundred tasks of one project, ten of another, eight cpus."""
    scheduler = farm(2)
    add(scheduler, *(f"a{number}" for number in range(100)), project="audio")
    add(scheduler, *(f"b{number}" for number in range(10)), project="vision")
    assert sorted(name[0] for name in started(scheduler)) == ["a"] * 4 + ["b"] * 4


def test_shares_follow_the_weights():
    """Of three times the weight three times the cpus; the resource that a project needs most of is what counts."""
    scheduler = farm(2)
    scheduler.project("vision", 3.0)
    add(scheduler, *(f"a{number}" for number in range(9)), project="audio")
    add(scheduler, *(f"b{number}" for number in range(9)), project="vision")
    assert sorted(name[0] for name in started(scheduler)) == ["a"] * 2 + ["b"] * 6


def test_shares_are_those_of_the_dominant_resource():
    """The example of Ghodsi et al. (2011), section 4.1: 9 cpus and 18 GB give three tasks to one and two to the other."""
    scheduler = farm({"devices": {"cpu": 9, "memory": 18}})
    add(scheduler, *(f"a{number}" for number in range(9)), needs=(Need(amounts={"cpu": 1, "memory": 4}),), project="a")
    add(scheduler, *(f"b{number}" for number in range(9)), needs=(Need(amounts={"cpu": 3, "memory": 1}),), project="b")
    assert sorted(name[0] for name in started(scheduler)) == ["a"] * 3 + ["b"] * 2


def test_priority_is_worth_a_minute_of_waiting():
    """Age moves a task past a later one of higher priority, and nothing is sorted again for it."""
    scheduler = farm(ONE)
    add(scheduler, "old", submitted=0.0)
    add(scheduler, "urgent", submitted=30.0, priority=1)
    add(scheduler, "urgent but later", submitted=61.0, priority=1)
    assert one_after_the_other(scheduler) == ["urgent", "old", "urgent but later"]


def test_projects_without_a_share_go_by_rank():
    """One cpu: whoever ended has nothing any more. By name, the later project would wait for ever."""
    scheduler = farm(ONE)
    add(scheduler, "a2", project="audio", submitted=2.0)
    add(scheduler, "a3", project="audio", submitted=3.0)
    add(scheduler, "v1", project="vision", submitted=1.0)
    add(scheduler, "v2", project="vision", submitted=2.5)
    assert one_after_the_other(scheduler) == ["v1", "a2", "v2", "a3"]


def test_a_plan_begins_with_its_longest_tasks_whatever_their_chunks():
    """The second chunk came later, and counts as submitted with the first; what is unknown may be longest of all."""
    scheduler = farm(ONE)
    add(scheduler, "short", plan="p", expected=1.0, submitted=0.0)
    add(scheduler, "long", plan="p", expected=60.0, submitted=5.0)
    add(scheduler, "unknown", plan="p", submitted=5.0)
    add(scheduler, "other", submitted=3.0, expected=600.0)
    assert one_after_the_other(scheduler) == ["unknown", "long", "short", "other"]


def test_a_retry_keeps_the_place_of_its_plan():
    """The last task of a plan comes back after a failed attempt: it still counts as submitted with the plan's first."""
    scheduler = farm(ONE)
    add(scheduler, "first", plan="p", submitted=0.0)
    add(scheduler, "second", plan="p", submitted=50.0)
    add(scheduler, "other", submitted=20.0)
    assert list(started(scheduler)) == ["first"]
    scheduler.task_gone("first")
    assert list(started(scheduler)) == ["second"]
    add(scheduler, "second", plan="p", submitted=50.0, excluded=("w0",))
    assert one_after_the_other(scheduler) == ["second", "other"]


# --- where ---

DEAR = {"devices": {"cpu": 8, "gpu": 1}, "labels": ("gpu",), "cost": 3.0}
CHEAP = {"devices": {"cpu": 16}, "cost": 1.0}


def test_alternatives_in_their_order():
    """One device, or else sixteen cpus; the placement says which it is."""
    scheduler = farm(DEAR, CHEAP)
    needs = (Need(amounts={"gpu": 1}, labels=("gpu",)), Need(amounts={"cpu": 16}))
    add(scheduler, "a", "b", "c", needs=needs)
    assert scheduler.decide(9, 0.0) == [
        Placement(task="a", workers=("w0",), alternative=0),
        Placement(task="b", workers=("w1",), alternative=1),
    ]


def test_the_cheapest_class_that_can():
    """A task for any cpu leaves the devices alone."""
    scheduler = farm(DEAR, CHEAP)
    add(scheduler, "a")
    assert started(scheduler) == {"a": "w1"}


def test_best_fit_keeps_what_is_scarce():
    """Of workers of one class the one with the least device left, then the least cpus: two cpus stay together."""
    both = {"devices": {"cpu": 4, "gpu": 1}}
    scheduler = farm(both, both)
    add(scheduler, "device", needs=(Need(amounts={"gpu": 1, "cpu": 1}),))
    assert started(scheduler) == {"device": "w0"}
    add(scheduler, "a", "b", "c", "d")
    assert started(scheduler) == {"a": "w0", "b": "w0", "c": "w0", "d": "w1"}


def test_an_exclusive_task_is_alone():
    """It waits for an empty worker, and nothing joins it."""
    scheduler = farm(2)
    add(scheduler, "a")
    assert started(scheduler) == {"a": "w0"}
    add(scheduler, "alone", needs=(Need(amounts={"cpu": 1}, exclusive=True),))
    add(scheduler, "alone too", needs=(Need(amounts={"cpu": 1}, exclusive=True),), submitted=1.0)
    add(scheduler, *"bcd", submitted=2.0)
    assert started(scheduler) == {"alone": "w1", "b": "w0", "c": "w0", "d": "w0"}
    for name in "abcd":
        scheduler.task_gone(name)
    assert started(scheduler) == {"alone too": "w0"}


@pytest.mark.parametrize(
    ("strategy", "where"),
    [
        ("fair_share", "w1 w1"),
        ("cheapest", "w3 w3"),
        ("fastest", "w0 w0"),
        ("least_loaded", "w1 w2"),
        ("locality", "w2 w2"),
        ("round_robin", "w1 w2"),
    ],
)
def test_strategies(strategy, where):
    """First a fast and dear one that only the second need fits, two that are alike, one of which has the input; a cheap one."""
    middle = {"devices": {"cpu": 4}, "labels": ("here",), "cost": 2.0}
    scheduler = farm(
        {"devices": {"cpu": 4}, "cost": 9.0, "speed": 3.0},
        middle,
        middle,
        {"devices": {"cpu": 4}, "cost": 1.0},
        strategy=strategy,
    )
    if strategy == "locality":
        scheduler.worker_offers(WorkerOffer(worker="w2", **middle, cached=frozenset({"d"})))
    needs = (Need(amounts={"cpu": 1}, labels=("here",)), Need(amounts={"cpu": 1}))
    add(scheduler, "a", "b", needs=needs, near=("d",) if strategy == "locality" else ())
    assert " ".join(started(scheduler).values()) == where


@pytest.mark.parametrize("strategy", ["fastest", "cheapest"])
def test_each_kind_goes_where_it_is_fast(strategy):
    """What history knows of a kind counts before what is said of a class; of a kind that it does not know that counts."""
    scheduler = farm({"devices": {"cpu": 2}, "speed": 2.0}, {"devices": {"cpu": 2, "gpu": 1}}, strategy=strategy)
    add(scheduler, "fit", expected=60.0, speeds={"gpu": 6.0, "cpu": 1.0})
    add(scheduler, "read", expected=60.0, speeds={"gpu": 0.5})
    add(scheduler, "new")
    assert started(scheduler) == {"fit": "w1", "read": "w0", "new": "w0"}


def test_where_a_kind_is_slow_it_ends_late():
    """A whole worker is held for a large task, and only what ends there in time may use it meanwhile."""
    scheduler = farm({"devices": {"cpu": 4}}, reserve_after=0.0, overtaken=1)
    add(scheduler, "a", expected=100.0)
    assert started(scheduler, 0.0) == {"a": "w0"}
    add(scheduler, "large", needs=WHOLE, expected=9.0)
    for number in range(3):
        add(scheduler, f"small{number}", submitted=1.0, expected=5.0)
    assert set(started(scheduler, 0.0)) == {"small0", "small1", "small2"}
    scheduler.task_gone("small0")
    assert started(scheduler, 5.0) == {}
    add(scheduler, "slow here", submitted=2.0, expected=50.0, speeds={"cpu": 0.5})
    assert started(scheduler, 6.0) == {}
    scheduler.task_gone("slow here")
    add(scheduler, "fast here", submitted=3.0, expected=500.0, speeds={"cpu": 50.0})
    assert started(scheduler, 7.0) == {"fast here": "w0"}


def test_locality_counts_within_the_cheapest_class():
    """Of two that are alike the one whose cache has more of the inputs, also if it fits less well."""
    scheduler = farm(3)
    scheduler.worker_offers(WorkerOffer(worker="w1", devices={"cpu": 4}, cached=frozenset({"d1"})))
    scheduler.worker_offers(WorkerOffer(worker="w2", devices={"cpu": 4}, cached=frozenset({"d1", "d2"})))
    add(scheduler, "a", near=("d1", "d2", "d3"))
    assert started(scheduler) == {"a": "w2"}


# --- workers come and go ---


def test_a_cordoned_worker_gets_nothing_new():
    """What runs there goes on; it is used again when it accepts again."""
    scheduler = farm(1)
    add(scheduler, "a")
    assert started(scheduler) == {"a": "w0"}
    scheduler.worker_offers(WorkerOffer(worker="w0", devices={"cpu": 4}, accepting=False))
    add(scheduler, "b")
    assert started(scheduler) == {}
    scheduler.worker_offers(WorkerOffer(worker="w0", devices={"cpu": 4}))
    assert started(scheduler) == {"b": "w0"}


def test_a_worker_that_comes_back_still_has_what_runs_on_it():
    """It was gone for a moment, and came back with fewer cpus: nothing new starts until there is room."""
    scheduler = farm(1)
    add(scheduler, "a", "b", needs=(Need(amounts={"cpu": 2}),))
    started(scheduler)
    scheduler.worker_gone("w0")
    scheduler.worker_gone("w0")
    add(scheduler, "c")
    assert started(scheduler) == {}
    scheduler.worker_offers(WorkerOffer(worker="w0", devices={"cpu": 3}))
    assert started(scheduler) == {}
    scheduler.task_gone("a")
    assert started(scheduler) == {"c": "w0"}


def test_placements_that_are_read_before_their_workers():
    """A new leader reads attempts of which it does not know the workers yet; a failover must not place twice."""
    scheduler = ShapeScheduler()
    adopted = ReadyTask(task="a", needs=WHOLE)
    scheduler.task_placed(adopted, ("w0",), 0)
    scheduler.worker_offers(WorkerOffer(worker="w0", devices={"cpu": 4}))
    add(scheduler, "b", submitted=1.0)
    assert started(scheduler) == {}
    scheduler.task_ready(adopted)
    assert started(scheduler) == {"a": "w0"}


def test_a_new_workers_kind_is_seen_by_those_that_sleep():
    scheduler = farm(1)
    add(scheduler, "a", needs=(Need(amounts={"gpu": 1}),))
    assert started(scheduler) == {}
    scheduler.worker_offers(WorkerOffer(worker="new", devices={"gpu": 1}))
    assert started(scheduler) == {"a": "new"}


def test_a_refused_placement_is_free_again():
    """And the task waits; what the record has shown is not refused any more."""
    scheduler = farm(ONE)
    add(scheduler, "a")
    started(scheduler)
    scheduler.placement_refused("a")
    scheduler.placement_refused("unknown")
    assert started(scheduler) == {"a": "w0"}
    scheduler.task_placed(ReadyTask(task="a"), ("w0",), 0)
    scheduler.placement_refused("a")
    add(scheduler, "b")
    assert started(scheduler) == {}


def test_somebody_else_placed_it_elsewhere():
    """The record is right: what was promised is free."""
    scheduler = farm(ONE, ONE)
    add(scheduler, "a")
    assert started(scheduler) == {"a": "w0"}
    scheduler.task_placed(ReadyTask(task="a"), ("w1",), 0)
    add(scheduler, "b")
    assert started(scheduler) == {"b": "w0"}


def test_a_retry_avoids_the_worker_until_no_other_is_left():
    """The exclusions count while somebody else could run it, even if busy; and again when somebody else comes."""
    scheduler = farm(ONE, ONE)
    add(scheduler, "a", excluded=("w0",))
    assert started(scheduler) == {"a": "w1"}
    add(scheduler, "b", excluded=("w0",))
    assert started(scheduler) == {}
    scheduler.worker_offers(WorkerOffer(worker="w1", accepting=False, **ONE))
    assert started(scheduler) == {"b": "w0"}
    scheduler.task_ready(ReadyTask(task="b", excluded=("w0", "w1")))
    scheduler.worker_offers(WorkerOffer(worker="w2", **ONE))
    assert started(scheduler) == {"b": "w2"}


def test_at_most_so_many_the_rest_later():
    scheduler = farm(1)
    add(scheduler, *"abcde")
    assert [list(started(scheduler, at_most=3)) for _ in range(3)] == [["a", "b", "c"], ["d"], []]
    assert (scheduler.num_placed, scheduler.num_waiting) == (4, 1)


def test_a_cancelled_task_is_never_placed():
    """In the middle of a queue, at its head, and twice."""
    scheduler = farm(ONE)
    add(scheduler, *"abcd")
    for name in "acc":
        scheduler.task_gone(name)
    assert one_after_the_other(scheduler) == ["b", "d"]


# --- licences ---


def test_licences():
    """Two of them, and a task that holds both; of what nobody has named there is none."""
    scheduler = farm(1)
    scheduler.licences({"matlab": 2})
    add(scheduler, "a", "b", "c", limits={"matlab": 1})
    add(scheduler, "d", limits={"spice": 1})
    assert list(started(scheduler)) == ["a", "b"]
    scheduler.task_gone("a")
    assert list(started(scheduler)) == ["c"]
    scheduler.licences({"matlab": 2, "spice": 1})
    assert list(started(scheduler)) == ["d"]


def test_who_needs_two_licences_is_not_passed_by_those_who_need_one():
    """Else one would always be held by somebody."""
    scheduler = farm(4)
    scheduler.licences({"matlab": 2})
    add(scheduler, "a", "b", limits={"matlab": 1})
    started(scheduler)
    add(scheduler, "both", limits={"matlab": 2}, submitted=1.0)
    add(scheduler, "c", "d", limits={"matlab": 1}, submitted=2.0)
    scheduler.task_gone("a")
    assert started(scheduler) == {}
    scheduler.task_gone("b")
    assert list(started(scheduler)) == ["both"]


def test_who_has_no_room_does_not_keep_licences_from_others():
    scheduler = farm(1)
    scheduler.licences({"matlab": 1})
    add(scheduler, "nowhere", needs=(Need(amounts={"gpu": 1}),), limits={"matlab": 1})
    add(scheduler, "a", limits={"matlab": 1}, submitted=1.0)
    assert list(started(scheduler)) == ["a"]


# --- gangs, reservations, backfill ---


def test_a_gang_starts_at_once_or_not_at_all():
    scheduler = farm(3)
    add(scheduler, "a")
    started(scheduler)
    add(scheduler, "gang", needs=WHOLE, gang=3, submitted=1.0)
    assert started(scheduler) == {}
    scheduler.task_gone("a")
    assert started(scheduler) == {"gang": "w0 w1 w2"}
    scheduler.task_gone("gang")
    add(scheduler, *"bcdefghijklm")
    assert len(started(scheduler)) == 12


def test_a_gang_is_of_one_class_where_it_can_be():
    """The slowest would hold up the others."""
    scheduler = farm({"devices": {"cpu": 4}, "cost": 0.5}, DEAR, DEAR)
    add(scheduler, "pair", gang=2)
    assert started(scheduler) == {"pair": "w1 w2"}
    add(scheduler, "trio", gang=3)
    assert started(scheduler) == {"trio": "w0 w1 w2"}


def run_stream(scheduler, seconds, wanted, expected, every=1.0, length=4.0):
    """Small tasks that never cease, one each `every` seconds, `length` long; when did `wanted` start?"""
    ends, number, now = [], 0, 0.0
    while now < seconds:
        now += every
        for name in [name for at, name in ends if at <= now]:
            scheduler.task_gone(name)
        ends = [entry for entry in ends if entry[0] > now]
        number += 1
        add(scheduler, f"s{number}", project=f"p{number % 2}", submitted=now, expected=expected)
        for name in started(scheduler, now):
            if name == wanted:
                return now
            ends.append((now + length, name))
    return math.inf


@pytest.mark.parametrize("expected", [4.0, None])
def test_a_large_task_is_not_starved_by_small_ones(expected):
    """One worker, always some small task on it; known durations or not."""
    scheduler = farm(1)
    add(scheduler, "large", needs=WHOLE, submitted=1.5, expected=10.0)
    assert 2 < run_stream(scheduler, 300, "large", expected) < 30
    never = farm(1, reserve_after=math.inf)
    add(never, "large", needs=WHOLE, submitted=1.5, expected=10.0)
    assert run_stream(never, 300, "large", expected) == math.inf


def test_a_gang_is_not_starved():
    scheduler = farm(3)
    add(scheduler, "gang", needs=WHOLE, gang=3, submitted=1.5)
    assert 2 < run_stream(scheduler, 300, "gang", 4.0, every=0.34) < 30


def test_a_project_with_the_larger_share_is_not_starved():
    """A project that holds most of the farm for days is helped, too: its turn never comes as long as others hold less."""
    scheduler = farm(2, starve_after=60.0)
    add(scheduler, "days", needs=WHOLE, project="large")
    assert started(scheduler) == {"days": "w0"}
    add(scheduler, "whole", needs=WHOLE, project="large", submitted=1.0)
    assert 60 < run_stream(scheduler, 300, "whole", 4.0) < 90


def test_a_backlog_reserves_nothing():
    """All wait for long, in a dozen queues; as each is served in its turn, nobody has been overtaken."""
    scheduler = farm({"devices": {"cpu": 4, "memory": 99}}, {"devices": {"cpu": 4, "memory": 99}})
    for number in range(400):
        needs = (Need(amounts={"cpu": 1, "memory": 1 + number % 4}),)
        project = f"p{number % 3}"
        add(scheduler, f"t{number}", needs=needs, project=project, submitted=number * 0.01, expected=7.0)
    running, now = list(started(scheduler)), 0.0
    while scheduler.num_waiting:
        now += 1.0
        scheduler.task_gone(running.pop(0))
        running += started(scheduler, now)
        assert scheduler.reservations == []
    assert now > 300


def test_a_clock_that_is_set_back():
    """By an hour, when the large task already waits: it is helped as soon as if it had come then."""
    scheduler = farm(1)
    add(scheduler, "before", submitted=1.0)
    started(scheduler, 3600.0)
    scheduler.task_gone("before")
    add(scheduler, "large", needs=WHOLE, submitted=1.5, expected=10.0)
    assert 2 < run_stream(scheduler, 300, "large", 4.0) < 30


def reserved_farm():
    """w0 is held free for `large` from 20 s on, when a task of one cpu is expected to end there; 3 cpus are free."""
    scheduler = farm(1, reserve_after=2.0)
    add(scheduler, "long", expected=20.0)
    started(scheduler, 0.0)
    add(scheduler, "large", needs=WHOLE, submitted=0.0, expected=5.0)
    for now in (1.0, 2.0, 3.0, 4.0):
        names = [f"{number}@{now}" for number in range(4)]
        add(scheduler, *names, submitted=now, expected=0.5)
        started(scheduler, now)
        for name in names:
            scheduler.task_gone(name)
    started(scheduler, 5.0)
    assert [held.ready for held in scheduler.reservations] == [20.0]
    return scheduler


@pytest.mark.parametrize(("expected", "starts"), [(14.0, True), (15.0, False), (None, False)])
def test_backfill(expected, starts):
    """At 5.5 s what ends by 20 s may use the room; what takes longer, or nobody knows how long, may not."""
    scheduler = reserved_farm()
    add(scheduler, "filler", submitted=5.0, expected=expected)
    assert bool(started(scheduler, 5.5)) == starts
    scheduler.task_gone("long")
    scheduler.task_gone("filler")
    assert list(started(scheduler, 6.0)) == ["large"]
    assert scheduler.reservations == []


def test_backfill_by_the_next_in_the_queue():
    """The first takes too long for the room; when it is cancelled, the one behind it may, though no room was added."""
    scheduler = reserved_farm()
    add(scheduler, "too long", submitted=5.0, expected=100.0)
    add(scheduler, "behind", submitted=6.0, expected=1.0)
    assert started(scheduler, 6.0) == {}
    scheduler.task_gone("too long")
    assert list(started(scheduler, 6.1)) == ["behind"]


@pytest.mark.parametrize("what", ["cancelled", "cordoned", "gone"])
def test_a_reservation_ends(what):
    """With the task that it was for, or with the worker; the others have the room again."""
    scheduler = reserved_farm()
    scheduler.worker_offers(WorkerOffer(worker="w1", devices={"cpu": 1}))
    add(scheduler, "unknown", needs=(Need(amounts={"cpu": 2}),), submitted=5.0)
    assert started(scheduler, 5.5) == {}
    if what == "cancelled":
        scheduler.task_gone("large")
        assert started(scheduler, 5.6) == {"unknown": "w0"}
    elif what == "cordoned":
        scheduler.worker_offers(WorkerOffer(worker="w0", devices={"cpu": 4}, accepting=False))
    else:
        scheduler.worker_gone("w0")
    assert scheduler.reservations == []


# --- amounts ---


def test_a_third_of_a_device_three_times():
    scheduler = farm({"devices": {"gpu": 1}})
    add(scheduler, *"abcd", needs=(Need(amounts={"gpu": 0.333}),))
    assert list(started(scheduler)) == ["a", "b", "c"]


def test_amounts_are_rounded_to_the_safe_side():
    """Up what is asked, down what is offered; never an error, whatever stands in the record."""
    assert [asked(amount) for amount in (0.1, 0.0001, 1 / 3, 0, -1, math.nan, math.inf)] == [
        100,
        1,
        334,
        0,
        0,
        0,
        BEYOND,
    ]
    assert [offered(amount) for amount in (0.1, 0.0001, 1 / 3, -1, math.nan)] == [100, 0, 333, 0, 0]
    assert offered(math.inf) < BEYOND
    assert [in_words(amount) for amount in (2000, 500, 1001)] == ["2", "0.5", "1.001"]


def test_who_names_no_amount_gets_a_cpu():
    scheduler = farm(ONE)
    add(scheduler, "a", needs=())
    add(scheduler, "b", needs=(Need(labels=()),))
    add(scheduler, "c", needs=(Need(amounts={"cpu": 0}),))
    assert list(started(scheduler)) == ["a"]


def test_wrong_numbers():
    with pytest.raises(ValueError, match="'vision' was given the weight 0"):
        ShapeScheduler().project("vision", 0)
    with pytest.raises(ValueError, match="reserve_after=-1: expected a number that is not negative"):
        SchedulerSettings(reserve_after=-1)
