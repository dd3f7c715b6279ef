"""What may start and what never will, held to a look at everything at once."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.dependencies import Dependencies, find_cycle

TASKS = st.integers(0, 7)


@st.composite
def plans(draw):
    """Tasks 0 to n, each after some of those before it."""
    number = draw(st.integers(1, 8))
    plan = {}
    for task in range(number):
        earlier = st.sets(st.integers(0, task - 1), max_size=3) if task else st.just(set())
        plan[str(task)] = (tuple(map(str, draw(earlier))), tuple(map(str, draw(earlier))))
    return plan


def expected(plan, ended):
    """Who is ready and who is to be skipped, by the rule and nothing else. `ended`: task -> whether it completed."""
    ready, skipped = set(), set()
    for task, (after, after_any) in plan.items():
        if any(name in ended and not ended[name] for name in after):
            skipped.add(task)
        elif all(ended.get(name) for name in after) and all(name in ended for name in after_any):
            ready.add(task)
    return ready, skipped


@given(plans(), st.data())
def test_told_once_and_in_time(plan, data):
    """Tasks appear in any order, some of them after what they wait for has ended; then all end, in any order."""
    dependencies, ended = Dependencies(), {}
    ready, skipped = set(), set()

    def take(told):
        for task in told[0]:
            assert task not in ready, "told twice"
            ready.add(task)
        for skip in told[1]:
            assert skip.task not in skipped | ready, "told twice"
            skipped.add(skip.task)

    waiting = data.draw(st.permutations(sorted(plan)))
    early = data.draw(st.integers(0, len(waiting)))
    for task in waiting[:early]:
        take(dependencies.present(task, *plan[task], all_known=False))
    dependencies.settle()
    late = list(waiting[early:])
    live = list(waiting[:early])
    while live or late:
        for name in dependencies.take_lookups():
            if name in ended:  # a task that is still to come is not told: it is found in the record
                take(dependencies.ended(name, ended[name], "failed"))
        wanted_ready, wanted_skipped = expected({task: plan[task] for task in [*ended, *live]}, ended)
        told_of = {*live}
        assert ready & told_of == wanted_ready & told_of
        assert skipped & told_of == wanted_skipped & told_of
        if late and (not live or data.draw(st.booleans())):
            task = late.pop(0)
            live.append(task)
            take(dependencies.present(task, *plan[task]))
            continue
        task = data.draw(st.sampled_from(sorted(live)))
        live.remove(task)
        # Nothing ends as completed that was not ready; what is not ready may be cancelled.
        ended[task] = task in ready and data.draw(st.booleans())
        take(dependencies.ended(task, ended[task], "failed"))
    assert not dependencies.take_lookups()


def test_unknown_is_not_met():
    dependencies = Dependencies()
    assert dependencies.present("a", ["ghost"], []) == ([], [])
    assert dependencies.take_lookups() == ["ghost"]
    ready, (skip,) = dependencies.ended("ghost", False, "is unknown")
    assert (ready, skip.task) == ([], "a")
    assert "comes after ghost, which is unknown" in skip.reason


def test_looked_up_where_it_went_without_a_word():
    """After a gap in the watch a dependency is only gone: how it ended is looked up."""
    dependencies = Dependencies()
    dependencies.present("a", [], [])
    dependencies.present("b", ["a"], [])
    assert not dependencies.take_lookups()
    dependencies.gone("a")
    assert dependencies.take_lookups() == ["a"]
    assert dependencies.ended("a", True, "") == (["b"], [])


@given(st.dictionaries(TASKS, st.lists(TASKS, max_size=3).map(tuple), max_size=8))
def test_cycles(after):
    graph = {str(task): tuple(map(str, names)) for task, names in after.items()}
    cycle = find_cycle(graph)
    if cycle is not None:
        assert cycle[0] == cycle[-1]
        assert all(later in graph[earlier] for earlier, later in itertools.pairwise(cycle))
        return
    left = {task: {name for name in names if name in graph} for task, names in graph.items()}
    while free := [task for task, names in left.items() if not names & left.keys()]:
        for task in free:
            del left[task]
    assert not left, "a cycle was not found"
