"""Reports: what is read, what is written, and that nothing in it becomes markup or a command."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.annotations import MAX_COMMANDS, check_annotations, code_quality, workflow_commands
from dtf_lightning.farm.ci.junit import read_junit, write_junit
from dtf_lightning.farm.ci.markdown import fenced, inline, markdown
from dtf_lightning.farm.ci.reading import ended_well, read_report
from dtf_lightning.farm.ci.report import Case, Group, Judged, Outcome, Report, State

WORDS = st.text(st.characters(codec="utf-8"), max_size=30)
XML = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), min_size=1, max_size=30)
CASES = st.builds(
    Case, name=WORDS, classname=WORDS, outcome=st.sampled_from(Outcome), message=WORDS, text=WORDS, file=WORDS,
    line=st.integers(0, 99), worker=WORDS,
)  # fmt: skip
GROUPS = st.lists(
    st.builds(Group, title=WORDS, kind=st.just("test"), cases=st.lists(CASES, max_size=4).map(tuple)), max_size=3
)
JUDGED = st.builds(
    Judged, verdict=WORDS, metric=WORDS, state=st.sampled_from(["slower", "faster", "same", "too noisy", "gave up"]), base=WORDS,
    candidate=WORDS, num_pairs=st.integers(0, 200), sentence=WORDS,
)  # fmt: skip
REPORTS = st.builds(
    Report, name=WORDS, ended_well=st.sampled_from([None, True, False]), groups=GROUPS.map(tuple),
    judged=st.lists(JUDGED, max_size=3).map(tuple), problems=st.lists(WORDS, max_size=2).map(tuple),
)  # fmt: skip

PYTEST = b"""<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1"
 skipped="1" tests="4" time="0.1"><testcase classname="tests.test_a" name="test_ok" time="0.01" />
<testcase classname="tests.test_a" name="test_no" time="0.02"><failure message="assert 1 == 2">def test_no():
&gt;       assert 1 == 2
E       assert 1 == 2

tests/test_a.py:5: AssertionError
/usr/lib/python3.11/x.py:9: AssertionError</failure></testcase>
<testcase classname="tests.test_a" name="test_skip" time="0"><skipped type="pytest.skip" message="not here">x</skipped></testcase>
<testcase classname="tests.test_b" name="test_err" time="0"><error message="failed on setup">e</error></testcase>
</testsuite></testsuites>"""


def test_what_pytest_writes(tmp_path):
    """With the line of the repository that failed, which pytest has in the text alone."""
    group = read_junit(PYTEST, "junit.xml")
    assert [case.outcome.value for case in group.cases] == ["passed", "failed", "skipped", "error"]
    assert (group.cases[1].file, group.cases[1].line, group.cases[1].title) == (
        "tests/test_a.py",
        5,
        "tests.test_a.test_no",
    )
    (path := tmp_path / "junit.xml").write_bytes(PYTEST)
    report = read_report("n", [path], True)
    assert (report.state, report.headline) == (State.FAILED, "2 of 4 tests failed, 1 skipped")
    assert "<code>tests&#47;" not in markdown(report)
    assert "tests/test" in markdown(report).replace("&#95;", "_")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PYTEST[:400], r"r.xml, line \d+, column \d+: .*; expected JUnit XML. Was its writer ended"),
        (b"<html></html>", "its root is <html>, expected <testsuites>"),
        (b'<testsuite><testcase name="a" time="soon"/></testsuite>', "a test's time is 'soon', expected seconds"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><testsuite/>', "it declares entities"),
        (b"", "r.xml is empty: the command ended before"),
        (b"[]", "r.xml is JSON of another kind; expected JUnit XML"),
        (b'{"verdicts": [{}]}', r"r.xml lacks what its kind has \(KeyError\('id'\)\)"),
        (b"tests: 5", "r.xml is neither XML nor JSON"),
        (None, "r.xml is not there: the command ended before it was written"),
    ],
)
def test_bad_input(tmp_path, data, message):
    """It is told, and the report fails, with what else there is."""
    path, good = tmp_path / "r.xml", tmp_path / "good.xml"
    good.write_bytes(b'<testsuite><testcase name="fine"/></testsuite>')
    if data is not None:
        path.write_bytes(data)
    report = read_report("n", [path, good], True)
    (problem,) = report.problems
    assert re.search(message, problem)
    assert report.state is State.FAILED
    assert report.headline == "1 test passed; 1 of the results could not be read"


def test_how_a_command_ended():
    assert [ended_well(text) for text in ("", "0", "success", "1", "124", "failed", "canceled", "skipped")] == [
        None, True, True, False, False, False, False, False,
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="--ended perhaps: expected an exit code"):
        ended_well("perhaps")
    assert read_report("n", [], False).state is State.FAILED
    assert read_report("n", [], False).headline == "the command failed"
    assert read_report("n", [], True).headline == "the command ended well"


def test_a_plan(tmp_path):
    """What does not count there, because of a quarantine, does not count here."""
    tasks = [
        {"task_id": "1", "name": "a", "status": "completed", "start_time": "2026-01-01T00:00:00+00:00", "end_time": "2026-01-01T00:00:02+00:00"},
        {"task_id": "2", "name": "b", "status": "failed", "error": "exit code 1", "worker_id": "w1"},
        {"task_id": "3", "name": "c", "status": "cancelled"},
        {"task_id": "4", "name": "d", "status": "skipped", "metadata": {"reason": "b failed"}},
    ]  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"plan_id": "p", "exit_code": 1, "tasks": tasks}))
    report = read_report("n", [path], False)
    assert report.headline == "2 of 4 tasks failed, 1 skipped"
    assert [case.name for _, case in report.bad()] == ["b", "c"]
    assert "<code>w1</code>" in markdown(report)
    path.write_text(json.dumps({"plan_id": "p", "exit_code": 0, "tasks": tasks[:2]}))
    assert (read_report("n", [path], True).state, read_report("n", [path], True).headline) == (
        State.PASSED, "1 task passed, 1 skipped",
    )  # fmt: skip


def judged(state):
    return Judged(
        verdict="v", metric="time", state=state, base="a", candidate="b", num_pairs=9, sentence=f"time: {state}"
    )


def test_verdicts():
    """A slower one fails, one that could not tell is neither."""
    for states, state, headline in (
        (["same", "faster"], State.PASSED, "2 comparisons: none slower"),
        (["same", "slower"], State.FAILED, "2 comparisons: 1 slower"),
        (["too noisy"], State.UNSURE, "1 comparison: 1 could not tell"),
        (["slower", "gave up"], State.FAILED, "2 comparisons: 1 slower, 1 could not tell"),
    ):
        report = Report(name="n", judged=tuple(map(judged, states)), ended_well=state is State.PASSED)
        assert (report.state, report.headline) == (state, headline)
        assert [line[:8] for line in workflow_commands(report)] == [
            "::error " if one == "slower" else "::warnin" for one in states if one not in ("same", "faster")
        ]
    assert "| <code>time</code> | slower |" in markdown(Report(name="n", judged=(judged("slower"),)))


@settings(max_examples=20)
@given(
    st.lists(
        st.builds(Case, name=XML, classname=XML, outcome=st.sampled_from(Outcome), message=XML, text=WORDS), max_size=5
    )
)
def test_junit_is_read_as_it_was_written(cases):
    """Names, ends and reasons; of what XML cannot hold a sign stands in its place."""
    group = Group(title="g", kind="test", cases=tuple(cases))
    again = read_junit(write_junit([group]), "x")
    assert [(case.name, case.classname, case.outcome) for case in again.cases] == [
        (case.name, case.classname, case.outcome) for case in cases
    ]
    assert [case.message for case in again.cases if case.outcome is not Outcome.PASSED] == [
        case.message for case in cases if case.outcome is not Outcome.PASSED
    ]


@given(WORDS)
def test_text_stays_text(text):
    """No sign that Markdown, HTML or a table reads is left; a browser shows what was said, and nobody is mentioned."""
    shown = inline(text)
    assert not set(re.sub(r"&#\d+;", "", shown)) & set("<>|`*_[]{}~#@!\\:&\n\r$^+-")
    assert re.sub("\ufffd", "", html.unescape(shown).replace("@\u200b", "@")) == "".join(
        sign for sign in " ".join(text.split()) if sign.isprintable() and sign != "\ufffd"
    )
    assert not re.search(r"@\w", html.unescape(shown))


@given(st.text("`a\n", max_size=40))
def test_a_fence_is_not_closed_from_within(text):
    block = fenced(text)
    fence = block[: len(block) - len(block.lstrip("`"))]
    assert block.count(fence) == 2


@settings(max_examples=20)
@given(REPORTS, st.integers(1500, 4000))
def test_a_report_has_room(report, limit):
    """Whatever is in it, and what was left out is counted."""
    text = markdown(report, limit)
    assert len(text.encode()) <= limit
    whole = markdown(report, 10**9)
    assert ("no room" in text) == (len(whole.encode()) > limit - 200)


def unescaped(text):
    return text.replace("%3A", ":").replace("%2C", ",").replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")


@settings(max_examples=20)
@given(REPORTS)
def test_nothing_but_our_commands(report):
    """Read as a runner reads it: each is one line, one command, and has what was said."""
    lines = workflow_commands(report)
    assert len("\n".join(lines).splitlines()) == len(lines)
    for line in lines:
        assert re.fullmatch(
            r"::(error|warning)( (file|line|title)=[^:,]*(,(file|line|title)=[^:,]*)*)?::[^\n\r]*", line
        )
    bad = [case for _, case in report.bad()]
    for case, line in zip(bad[: MAX_COMMANDS - 1], lines, strict=False):
        said = unescaped(line.partition("::")[2].partition("::")[2])
        assert said.startswith("".join(sign if sign.isprintable() or sign in "\r\n" else " " for sign in case.message))


def test_many_failures_are_counted():
    cases = tuple(
        Case(name=f"t{number}", outcome=Outcome.FAILED, file="a.py", line=number + 1) for number in range(300)
    )
    report = Report(name="n", groups=(Group(title="g", kind="test", cases=cases),))
    lines = workflow_commands(report)
    assert len(lines) == MAX_COMMANDS
    assert "291 more failed" in lines[-1]
    assert "100 more failed" in markdown(report)
    assert len(check_annotations(report)) == 300
    found = json.loads(code_quality(report))
    assert found[4]["location"] == {"path": "a.py", "lines": {"begin": 5}}
    assert len({one["fingerprint"] for one in found}) == 300
