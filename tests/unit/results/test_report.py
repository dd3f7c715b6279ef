"""The report of a small run, as text and in a real browser."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path

import pytest

from dtf_lightning.cli import main
from dtf_lightning.results.account import epoch_ranges, gather
from dtf_lightning.results.page import page
from support import browser


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


def test_nothing_of_the_data_becomes_markup(store, run_dir):
    """Names come from other machines and from users."""
    store.sync(run_dir)
    account = gather(store, "r")
    account["generations"][1]["reason"] = "</script><script>alert(1)</script>{{SCRIPT}}"
    text = page([account])
    assert "alert(1)" in text
    assert "<script>alert" not in text


@pytest.mark.process
def test_in_a_browser(written):
    """Every chart has marks, nothing is loaded, the console has no error."""
    dom, errors = browser.dom(written)
    assert errors == []
    charts = dom.count('class="chart')
    assert charts == 6
    assert dom.count('class="main-svg"') >= charts
    assert len(re.findall(r'class="point"', dom)) >= 10  # bars and markers
    assert len(re.findall(r'class="js-line"', dom)) >= 3
    assert "every sample once" in dom
    assert not re.search(r'(?:src|href)="https?:', written.read_text().partition('<script type="application/json"')[0])


@pytest.mark.process
@pytest.mark.parametrize(("fragment", "is_dark"), [("#light", False), ("#dark", True)])
def test_light_and_dark(written, tmp_path, fragment, is_dark):
    """The picture is not blank and has the theme's background; at the width of a phone nothing is cut off."""
    picture = browser.screenshot(written, tmp_path / "shot.png", width=500, height=900, fragment=fragment)
    pixels = decode(picture.read_bytes())
    corner = sum(pixels[0][:3]) / 3
    assert (corner < 60) is is_dark
    assert len({row[x : x + 3] for row in pixels[::7] for x in range(0, len(row), 33)}) > 20


def decode(png: bytes) -> list[bytes]:
    """Rows of an 8-bit RGB or RGBA PNG."""
    width, height, depth, color = struct.unpack(">IIBB", png[16:26])
    assert (depth, color in (2, 6)) == (8, True)
    size, data, at = {2: 3, 6: 4}[color], b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw, rows, above = zlib.decompress(data), [], bytearray(width * size)
    for y in range(height):
        kind, row = (
            raw[y * (width * size + 1)],
            bytearray(raw[y * (width * size + 1) + 1 : (y + 1) * (width * size + 1)]),
        )
        for i in range(len(row)):
            left, up = row[i - size] if i >= size else 0, above[i]
            corner = above[i - size] if i >= size else 0
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda value: abs(guess - value))
            row[i] = (row[i] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
        rows.append(bytes(row))
        above = row
    return rows


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/observability.md"])
def test_sql_of_the_documentation(page, run_dir, tmp_path, capsys):
    """Runs as it is written there."""
    db = str(tmp_path / "results.duckdb")
    assert main(["results", "sync", str(run_dir), "--db", db, "--parquet", str(tmp_path / "out")]) == 0
    queries = re.findall(r'dtf results query "(.*)"', (ROOT / page).read_text())
    assert queries
    for query in queries:
        assert main(["results", "query", query, "--db", db]) == 0
    assert "failure" in capsys.readouterr().out
