"""The report of a small run, as text and in a real browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.elastic.events import ELASTIC_EVENTS, GenerationFormed
from dtf_lightning.elastic.reports.page.html import page
from dtf_lightning.elastic.reports.report_data import epoch_ranges, gather
from dtf_lightning.elastic.reports.text import Style, lines, table
from dtf_lightning.events.log import EventLog, events_path
from support import browser
from support.elastic.reports import LOOK, TITLES


@pytest.fixture
def written(run_dir, tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", str(run_dir), "--output", str(path)]) == 0
    return path


def test_text(run_dir, capsys):
    """One table of generations, one of time, one of samples."""
    assert main(["report", str(run_dir), "--format", "text"]) == 0
    text = capsys.readouterr().out
    assert "20 steps in 2 generations by 2 workers" in text
    assert "goodput 59.4% of 16.0 s worker time (86.4% without start-up)" in text
    assert re.search(r"^2 +b#1 failed: 2 -> 1 nodes +1 +12 +100 +100$", text, re.MULTILINE)
    assert re.search(r"^lost work +0\.85 +5\.3%$", text, re.MULTILINE)
    assert re.search(r"^0 +8 +0 +0 +1$", text, re.MULTILINE)
    assert re.search(r"^2 +failure +20 +30 +0 +0 +0 +50$", text, re.MULTILINE)  # pauses by phase
    assert re.search(r"^10 +0 +c1 +5 +100 +pruned$", text, re.MULTILINE)
    assert re.search(r"^20 +0 +c2 +6 +100 +kept$", text, re.MULTILINE)
    assert re.search(r"^model +Net$", text, re.MULTILINE)  # environment


def test_markdown_and_json(run_dir, capsys):
    main(["report", str(run_dir), "--format", "md"])
    assert "| generation | why | world | at step | pause ms | worst |\n|---|" in capsys.readouterr().out
    main(["report", str(run_dir), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["goodput"]["total"]["lost"] == 0.85


def test_comparison(run_dir, capsys):
    """Two runs side by side; the same one twice is one run."""
    assert main(["report", str(run_dir), str(run_dir), "--format", "text"]) == 0
    assert re.search(r"^worst pause ms +100 +100$", capsys.readouterr().out, re.MULTILINE)


def test_corrupt_lines_are_in_the_report(run_dir, capsys):
    path = run_dir / "events" / "a.0.1.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    main(["report", str(run_dir), "--format", "text"])
    assert (
        "attention: 1 corrupt lines in the logs, the first: a.0.1.jsonl:1: expected one JSON" in capsys.readouterr().out
    )


def test_epochs_alike_are_one_line():
    clean = {"complete": True, "consumed": 8, "missing": 0, "repeated": 0, "padding": 1}
    found = epoch_ranges([{"epoch": i, **clean, "padding": 2 if i == 3 else 1} for i in range(5)])
    assert [audit["epoch"] for audit in found] == ["0–2", "3", "4"]


def test_no_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "is no run's folder" in capsys.readouterr().err


def test_folder_above(run_dir, tmp_path, capsys):
    """The only run below `dtf/` need not be named; of several the error names all."""
    shutil.copytree(run_dir, tmp_path / "here" / "dtf" / "one")
    assert main(["report", str(tmp_path / "here")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "here" / "dtf" / "one" / "report.html")
    shutil.copytree(run_dir, tmp_path / "here" / "dtf" / "two")
    assert main(["report", str(tmp_path / "here")]) == 1
    assert "could be several runs: " in (errors := capsys.readouterr().err)
    assert "dtf/one, " in errors


def test_a_terminal_is_never_too_narrow(store, run_dir):
    """Every line of a text report fits into the terminal; nothing of what it says is lost."""
    account = gather(store, store.sync(run_dir).run)
    wide = "".join(lines(account))
    for width in (40, 80, 120):
        fitted = lines(account, style=Style(width=width))
        assert max(map(len, fitted)) <= width
        assert all(word in "".join("".join(fitted).split()) for word in ("Generations", "b#1failed", "productive"))
    assert lines(account, style=Style(width=1000)) == lines(account)
    assert "b#1 failed: 2 -> 1 nodes" in wide


def test_too_many_columns_become_blocks():
    """Where even narrow columns do not fit, each row is a block of lines that name their columns."""
    head = [f"column {number}" for number in range(8)]
    assert table(head, [["x" * 20] * 8], Style(width=40)) == [f"{name}: {'x' * 20}" for name in head]


def test_page_that_cannot_be_written(run_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["report", str(run_dir), "--output", str(tmp_path / "file" / "page.html")]) == 1
    assert "page.html: Not a directory; name a file with --output" in capsys.readouterr().err


def test_nothing_of_the_data_becomes_markup(store, run_dir):
    """Names come from other machines and from users."""
    store.sync(run_dir)
    account = gather(store, "r")
    account["generations"][1]["reason"] = "</script><script>alert(1)</script>{{SCRIPT}}"
    text = page([account])
    assert "alert(1)" in text
    assert "<script>alert" not in text


VIEWS = [
    browser.View(name="desktop", dark=False, script=LOOK),
    browser.View(name="dark", fragment="#dark", dark=True, script=LOOK),
    browser.View(name="phone", width=360, height=740, fragment="#dark", dark=True, script=LOOK),
]


def report_of_agents(tmp_path):
    """Of a run in restart mode, in which no worker writes."""
    log = EventLog(ELASTIC_EVENTS, events_path(tmp_path / "agents", "a"))
    log.write(GenerationFormed(at=6.0, source="a", generation=1, rescale="start", reason="all are here",
                               members=("a#1",), world_size=1))  # fmt: skip
    log.close()
    assert main(["report", str(tmp_path / "agents")]) == 0
    return tmp_path / "agents" / "report.html"


@pytest.mark.process
def test_in_a_browser(written, tmp_path):
    """A real one: each chart has marks, nothing is loaded, no error, light and dark, and all fits a phone."""
    agents_alone = browser.View(name="agents", page=report_of_agents(tmp_path).as_uri(), script=LOOK)
    seen = browser.look(written, [*VIEWS, agents_alone], tmp_path)
    without_workers = seen.pop("agents")
    assert (without_workers.errors, without_workers.requests) == ([], [])
    assert without_workers.value["charts"] == []
    assert "all are here" in without_workers.value["text"]
    for name, view in seen.items():
        assert (view.errors, view.requests) == ([], []), name
        assert [chart["title"] for chart in view.value["charts"]] == TITLES, name
        assert [chart["title"] for chart in view.value["charts"] if not chart["marks"]] == [], name
        assert view.colors > 20, f"{name} is blank: {view.picture}"
        assert (view.value["overflow"], view.value["wide"], view.value["small"]) == (0, [], 0), name
        for text in ("every sample once", "Checkpoints", "pruned", "kept", "Environment", "Net", "Generations"):
            assert text in view.value["text"], (name, text)
    assert {name: view.value["theme"] for name, view in seen.items()} == {
        "desktop": "light", "dark": "dark", "phone": "dark",
    }  # fmt: skip
    assert seen["dark"].brightness < 0.3 < 0.8 < seen["desktop"].brightness
    assert seen["phone"].brightness < 0.3
    assert all(280 < chart["width"] <= 340 for chart in seen["phone"].value["charts"])


@pytest.mark.process
def test_comparison_in_a_browser(run_dir, tmp_path):
    """Two runs: side by side first, both lines in each chart, then each for itself."""
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    page = tmp_path / "both.html"
    assert main(["report", str(run_dir), str(other), "--output", str(page)]) == 0
    views = [
        browser.View(name="both", dark=True, script=LOOK),
        browser.View(name="phone", width=360, height=740, dark=True, script=LOOK),
    ]
    for name, view in browser.look(page, views, tmp_path, dark=True).items():
        assert (view.value["theme"], view.brightness < 0.3) == ("dark", True)  # as the system has it
        assert (view.errors, view.requests) == ([], []), name
        charts = {chart["title"]: chart["marks"] for chart in view.value["charts"][:3]}
        assert charts == {"Loss": 2, "Validation": 4, "Throughput": 4}, name
        assert "Side by side" in view.value["text"]
        assert (view.value["overflow"], view.value["wide"]) == (0, []), name


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/observability.md"])
def test_commands_of_the_documentation(page, run_dir, tmp_path, monkeypatch, capsys):
    """Commands, SQL and Python run as they are written there, in a folder with the runs that they name."""
    for name in ("run7", "run8"):
        shutil.copytree(run_dir, tmp_path / "here" / "dtf" / name)
    monkeypatch.chdir(tmp_path / "here")
    text = (ROOT / page).read_text()
    commands = re.findall(r"^(dtf (?:report|results|audit) .*?) *(?:#.*)?$", text, re.MULTILINE)
    assert any("SELECT" in command for command in commands)
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert "failure" in capsys.readouterr().out
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "ResultsStore" in block:
            if "arrow" in block:
                pytest.importorskip("pyarrow", reason="Arrow needs pyarrow: pip install 'dtf-lightning[arrow]'")
            names = {}
            exec(block, names)
            assert names["pauses"] == [(2, 0.1)]
            assert names["losses"].num_rows == 2
