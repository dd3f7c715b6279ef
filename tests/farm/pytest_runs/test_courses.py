"""Shards that crash and workers that are lost: every test is told of once, and the right ones are to blame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.pytest_runs.courses import MAX_LOSSES, Courses, End, Rest

FAILED = {"kind": "crash", "text": ""}


def say(courses, test, kind, **fields):
    courses.hear(test, {"kind": kind, "at": 0, "seconds": 0.1, **fields})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_every_test_comes_to_its_end(sizes, data):
    """Whatever ends processes and workers, before, in or between tests. Who crashes is to blame, and nobody else is."""
    total = sum(sizes)
    crashes = data.draw(st.sets(st.integers(0, total - 1)), "tests that end their process")
    losses = data.draw(st.lists(st.integers(0, total), max_size=6), "tests at which a worker is lost")
    courses = Courses(total)
    first = [sum(sizes[:number]) for number in range(len(sizes))]
    waiting = [tuple(range(start, start + size)) for start, size in zip(first, sizes, strict=True)]
    blamed, ended, lost_with = set(), [], dict.fromkeys(range(total), 0)
    while waiting:
        shard = waiting.pop(0)
        running, begun, end = None, False, End.BY_ITSELF
        for test in shard:
            if test in losses and not begun:
                losses.remove(test)
                end = End.LOST  # before it had begun
                break
            begun = True
            say(courses, test, "start")
            say(courses, test, "report", data={})
            if test in losses:
                losses.remove(test)
                running, end = test, End.LOST
                lost_with[test] += 1
                break
            if test in crashes:
                running = test
                break
            say(courses, test, "finish")
            ended.append(test)
        rest = courses.rest(shard, running=running, begun=begun, end=end)
        assert not rest.hopeless
        if rest.left_to_the_farm:
            waiting.append(shard)
        if rest.failed is not None:
            courses.fail(rest.failed, FAILED)
            ended.append(rest.failed)
            blamed.add(rest.failed)
        waiting += rest.again
    assert sorted(ended) == list(range(total))
    assert all(course.finished for course in courses.of)
    suspects = {test for test, times in lost_with.items() if times >= MAX_LOSSES}
    assert blamed == crashes | (suspects - crashes) if blamed else not crashes
    assert all(
        courses.of[test].lines == [{"kind": "report", "at": 0, "seconds": 0.1, "data": {}}]
        for test in ended
        if test not in blamed
    )


def test_the_test_that_was_running_has_failed_and_the_rest_runs_elsewhere():
    courses = Courses(3)
    say(courses, 0, "start")
    say(courses, 0, "finish")
    say(courses, 1, "start")
    assert courses.rest((0, 1, 2), running=1, begun=True, end=End.BY_ITSELF) == Rest(failed=1, again=((2,),))


def test_a_lost_worker_is_not_the_tests_fault():
    """It runs again by itself; with a second one it has failed."""
    courses = Courses(3)
    say(courses, 1, "start")
    assert courses.rest((0, 1, 2), running=1, begun=True, end=End.LOST) == Rest(again=((1,), (0, 2)))
    say(courses, 1, "start")
    assert courses.rest((1,), running=1, begun=True, end=End.LOST) == Rest(failed=1)


def test_a_shard_that_cannot_begin_is_not_tried_again():
    """It would end as it has ended; with a lost worker it may yet begin, and the farm counts the workers."""
    courses = Courses(2)
    assert courses.rest((0, 1), running=None, begun=False, end=End.BY_ITSELF).hopeless
    assert courses.rest((0, 1), running=None, begun=False, end=End.LOST) == Rest(left_to_the_farm=True)


def test_what_ends_the_run_leaves_no_rest():
    """`pytest.exit` in a test: what comes behind it would not have run here."""
    courses = Courses(3)
    say(courses, 0, "start")
    say(courses, 0, "exit", text="enough", code=7)
    assert courses.rest((0, 1, 2), running=None, begun=True, end=End.BY_ITSELF) == Rest()


def test_a_test_is_told_of_once():
    """What a lost attempt had said of it is forgotten when it starts again, what comes when it is finished is not heard."""
    courses = Courses(1)
    for kind in ("start", "report", "start", "report", "finish", "start", "report", "finish"):
        say(courses, 0, kind, data=kind)
    assert [line["kind"] for line in courses.of[0].lines] == ["report"]
