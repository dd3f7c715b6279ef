"""People name a run by its folder, by one above it, or by its id."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.reports.run_folder import find_run, found_or_later, known_run
from dtf_lightning.errors import SettingsError


def make(folder, kind="events"):
    (folder / kind).mkdir(parents=True)
    (folder / kind / "a.0.1.jsonl").touch()
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["events", "ledger"])
@pytest.mark.parametrize("place", ["runs/dtf/run7", "dtf/run7", "run7", "runs/dtf", "runs", ".", "run7/"])
def test_every_way_to_name_it(here, place, kind):
    """As the README's quickstart leaves it: below `default_root_dir="runs"`."""
    run = make(here / "runs" / "dtf" / "run7", kind)
    assert find_run(place) == run


def test_an_id_beside_others(here):
    """The id tells which of several runs; the folder above them does not, and the error names them."""
    run = make(here / "runs" / "dtf" / "run7")
    make(here / "runs" / "dtf" / "run8")
    assert find_run("run7") == known_run("run7") == run
    with pytest.raises(SettingsError, match="could be several runs: runs/dtf/run7, runs/dtf/run8"):
        find_run("runs")
    other = make(here / "more" / "dtf" / "run7")
    assert known_run("run7") is None
    with pytest.raises(SettingsError, match="could be several runs: more/dtf/run7, runs/dtf/run7"):
        find_run("run7")
    assert find_run(other) == other


def test_nothing_there(here):
    make(here / "runs" / "dtf" / "run7")
    with pytest.raises(
        SettingsError, match=r"'run9' is no run's folder: .*run9 does not exist, and no run of that name"
    ):
        find_run("run9")
    (here / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"has no events/\*\.jsonl and no ledger"):
        find_run("empty")
    assert known_run("run9") is None
    assert found_or_later(here / "run9") == here / "run9"
