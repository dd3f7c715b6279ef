"""One test over time: its counts, the texts of its failures, what its metric tells, and which version ran."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.results.tests.course import Count, CourseWanted, read_course
from dtf_lightning.farm.results.tests.runs import Version, version_of
from dtf_lightning.farm.verdicts.metrics import Metric

CLASSES = {"w1": "cpu", "w2": "gpu"}
DURATION = Metric.parse("duration")


def course(results, **fields):
    return read_course(results, CourseWanted(**{"test": "t", "metric": DURATION} | fields), CLASSES)


def test_counts_by_device_and_worker(results, run):
    run(name="t")
    run(name="t", attempt=2)
    run("failed", name="t", workers=("w2",))
    run("timeout", name="t", workers=("w2",))
    run("lost", name="t", workers=("w9",))
    run("cancelled", name="t")
    run("failed", name="other")
    told = course(results)
    assert told.count == Count(runs=5, failed=2, lost=1, tried=1)
    assert told.by_device == {
        "": Count(runs=1, lost=1), "cpu": Count(runs=2, tried=1), "gpu": Count(runs=2, failed=2)
    }  # fmt: skip
    assert list(told.by_worker) == ["w1", "w2", "w9"]
    assert [run.end for run in told.runs] == ["lost", "timeout", "failed", "passed", "passed"]


def test_filters_leave_the_counts_alone(results, run):
    main = run(name="t", environment={"GITHUB_REF_NAME": "main", "GITHUB_SHA": "a" * 40})
    gpu = run("failed", name="t", workers=("w2",))
    gone = run(name="t", workers=("w9",))
    for fields, shown in (
        ({"device": "gpu"}, [gpu]),
        ({"device": ""}, [gone]),
        ({"device": "tpu"}, []),
        ({"worker": "w1"}, [main]),
        ({"branch": "main"}, [main]),
        ({}, [gone, gpu, main]),
    ):
        told = course(results, **fields)
        assert [run.task for run in told.runs] == shown, fields
        assert told.count.runs == 3
    assert course(results).runs[-1].version == "main aaaaaaaaaa"


def test_failures_by_their_texts(results, run):
    for reason, tail in (("exit code 1", "old"), ("exit code 2", "x"), ("exit code 1", "new <b>")):
        last = run("failed", name="t", reason=reason, tail=tail)
    told = course(results).failures
    assert [(one.reason, one.number, one.newest.tail) for one in told] == [
        ("exit code 1", 2, "new <b>"),
        ("exit code 2", 1, "x"),
    ]
    assert told[0].newest.task == last


def test_a_step_is_told_with_its_run(results, run):
    tasks = run.passed(
        {"name": "t", "metrics": {"latency": (100 if number < 30 else 120) + number % 3 / 10}} for number in range(45)
    )
    told = course(results, metric=Metric.parse("latency:ms")).told
    (step,) = told.steps
    assert (told.tasks[step.run], step.worse, round(step.percent)) == (tasks[30], True, 20)
    assert told.unit == "ms"
    assert told.low < 120 < told.high
    assert told.visible == pytest.approx(0.02)


def test_more_is_better(results, run):
    run.passed({"name": "t", "metrics": {"speed": 100 + number % 3}} for number in range(30))
    told = course(results, metric=Metric.parse("speed:1/s")).told
    assert told.low < told.center < told.high
    assert told.low < 101 < told.high


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_numbers_that_tell_nothing(results, run, value):
    run.passed({"name": "t", "metrics": {"m": one}} for one in (1.0, 1.0, value))
    told = course(results, metric=Metric.parse("m:s")).told
    assert (told.values[:2], bool(told.problem)) == ((1.0, 1.0), value <= 0)


def test_one_point_or_none(results, run):
    assert (course(results).count.runs, course(results).told.values) == (0, ())
    run(name="t")
    told = course(results).told
    assert (told.values, told.center) == ((2.0,), None)
    assert "at least 2" in told.problem


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({}, Version()),
        ({"environment": {"GIT_COMMIT": "", "GIT_BRANCH": "b"}}, Version(branch="b")),
        ({"inputs": {"src": "git+https://x/y@" + "c" * 40}}, Version(commit="c" * 40)),
        ({"inputs": {"a": "git+https://x/y@" + "c" * 40, "b": "git+https://x/z@" + "d" * 40}}, Version()),
        ({"environment": {"GITHUB_SHA": "e" * 40}, "inputs": {"a": "git+https://x/y@" + "c" * 40}}, Version(commit="e" * 40)),
    ],
)  # fmt: skip
def test_which_version_was_run(fields, version):
    assert version_of(TaskSpecification(command=("x",), **fields)) == version
    assert version_of(None) == Version()


def test_by_which_name_a_version_is_meant():
    version = Version(commit="abcdef1234", branch="main")
    assert [version.is_called(name) for name in ("main", "abcdef1", "abcdef", "", "mai")] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_reruns_are_evidence_and_no_part_of_the_history(results, run):
    from dtf_lightning.farm.results.tests.grid import GridWanted, read_grid
    from dtf_lightning.farm.results.tests.runs import RERUN
    from dtf_lightning.farm.server.clients.reruns import PREFIX

    assert RERUN == PREFIX
    run("failed", name="t")
    again = run(name="blame: t", project="vision")
    told = course(results)
    assert (told.count.runs, [one.task for one in told.reruns]) == (1, [again])
    assert [row.test for row in read_grid(results, GridWanted(), {}).rows] == ["t"]
