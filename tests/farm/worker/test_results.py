"""What a task has reported and left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtf_lightning import farm
from dtf_lightning.farm.worker.report import report
from dtf_lightning.farm.worker.results import INDEX, MAX_ARTIFACTS, MAX_BYTES, MAX_METRICS, collect


@pytest.fixture
def folders(tmp_path):
    results, work = tmp_path / "results", tmp_path / "work"
    results.mkdir()
    work.mkdir()
    return results, work


@pytest.fixture
def found(folders, tmp_path):
    """What is found there."""
    return lambda *patterns: collect(*folders, patterns, tmp_path / INDEX)


def test_metrics(folders, found):
    """The last number of a name counts, in the order of the lines and of the files' names."""
    results, _ = folders
    (results / "a.jsonl").write_text('{"loss": 2, "epoch": 1}\n\n{"loss": {"train": 1.5}, "ok": true, "name": "x"}\n')
    (results / "b.jsonl").write_text('{"epoch": 2, "bad": NaN, "huge": 1' + "0" * 400 + "}")
    report = found()
    assert report.metrics.pop("bad") != report.metrics.get("bad")
    assert report.metrics == {"loss": 2.0, "epoch": 2.0, "loss.train": 1.5}
    assert sorted(report.artifacts) == ["a.jsonl", "b.jsonl"]
    assert report.notes == []


def test_lines_that_are_none(folders, found):
    results, _ = folders
    (results / "a.jsonl").write_bytes(b'{"a": 1}\nnot json\n[1]\n\xff\n{"b": 2}')
    report = found()
    assert report.metrics == {"a": 1.0, "b": 2.0}
    assert report.notes == [f"line {number} of a.jsonl is no JSON object" for number in (2, 3, 4)]


def test_a_file_that_is_too_large(folders, found):
    results, _ = folders
    with (results / "a.jsonl").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    report = found()
    assert report.notes == ["a.jsonl has more than 64 MiB and was not read"]
    assert list(report.artifacts) == ["a.jsonl"]


JUNIT = """<?xml version="1.0"?><testsuites><testsuite tests="99">
<testcase name="a"/><testcase name="b"><failure message="no">text</failure></testcase>
<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase><testcase name="e"><system-out/></testcase>
</testsuite></testsuites>"""


def test_test_cases(folders, found):
    """They are counted, whatever the suite says of itself; those of several files together."""
    results, _ = folders
    (results / "unit").mkdir()
    (results / "unit" / "junit.xml").write_text(JUNIT)
    (results / "other.xml").write_text('<testsuite><testcase name="f"/></testsuite>')
    (results / "page.xml").write_text("<html><testcase/></html>")
    assert found().counts == {"tests": 6, "passed": 3, "failed": 1, "errors": 1, "skipped": 1}


def test_xml_that_is_none(folders, found):
    results, _ = folders
    (results / "a.xml").write_text(JUNIT[:200])
    report = found()
    assert report.counts == {}
    assert report.notes[0].startswith("a.xml is no JUnit XML: ")


def test_artifacts(folders, found):
    """Files that match, in folders too; none outside of the working folder, by whatever way."""
    _, work = folders
    (work / "out" / "deep").mkdir(parents=True)
    for name in ("out/a.txt", "out/deep/b.txt", "c.log"):
        (work / name).write_text(name)
    (work / "passwords.txt").symlink_to("/etc/passwd")
    (work / "inside.txt").symlink_to(work / "c.log")
    (work / "root").symlink_to("/etc")
    report = found("*.txt", "out", "root/*", "../*", "/etc/passwd", "none*")
    assert sorted(report.artifacts) == ["inside.txt", "out/a.txt", "out/deep/b.txt"]
    assert report.artifacts["out/a.txt"] == str(work / "out" / "a.txt")
    assert report.notes == [
        "no file matches the artifacts 'root/*'",
        "the artifacts '../*' are not below the working folder",
        "the artifacts '/etc/passwd' are not below the working folder",
        "no file matches the artifacts 'none*'",
    ]


def test_too_many(folders, found):
    """An outcome is small: the rest stands in a file."""
    results, _ = folders
    for number in range(MAX_ARTIFACTS + 1):
        (results / f"{number:03}.bin").write_bytes(b"")
    (results / "m.jsonl").write_text(json.dumps({f"m{number:03}": number for number in range(MAX_METRICS + 1)}))
    report = found()
    assert (len(report.metrics), len(report.artifacts)) == (MAX_METRICS, MAX_ARTIFACTS)
    index = json.loads(Path(report.artifacts[INDEX]).read_text())
    assert (len(index["metrics"]), len(index["artifacts"])) == (MAX_METRICS + 1, MAX_ARTIFACTS + 2)
    assert "all are in index.json" in report.notes[0]


def test_nothing_is_there(tmp_path):
    """The task has removed its folders."""
    report = collect(tmp_path / "results", tmp_path / "work", ("*",), tmp_path / INDEX)
    assert (report.metrics, report.artifacts) == ({}, {})


class Tensor:
    def item(self):
        return 0.25


def test_report(folders, found, monkeypatch):
    """What a task's Python code says; numbers of torch and numpy count."""
    results, _ = folders
    assert farm.report is report
    monkeypatch.setenv("DTF_FARM_RESULTS", str(results))
    assert report({"val/loss": 3}, accuracy=Tensor(), stage="fit")
    assert report(accuracy=0.5)
    assert found().metrics == {"val/loss": 3.0, "accuracy": 0.5}
    with pytest.raises(TypeError, match="which JSON cannot hold"):
        report(what=object())


def test_report_outside_of_a_farm(monkeypatch):
    monkeypatch.delenv("DTF_FARM_RESULTS", raising=False)
    assert report(loss=1) is False
