"""Strategies by name, and those of other packages."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import ReadyTask, WorkerOffer
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES
from dtf_lightning.farm.strategies import strategy_named, strategy_names

PLUGIN = """
from dtf_lightning.farm.rules.scheduling.strategies import Looks

class LastName:
    looks = Looks.ALWAYS

    def class_order(self, alternative, cost, speed):
        return ()

    def worker_order(self, candidate):
        return tuple(-ord(letter) for letter in candidate.worker)

class Nothing:
    looks = "never"

    def class_order(self, alternative, cost, speed):
        return ()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package that adds strategies."""
    (tmp_path / "farm_plugin.py").write_text(PLUGIN)
    info = tmp_path / "farm_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: farm-plugin\nVersion: 1.0\n")
    names = {"last_name": "LastName", "nothing": "Nothing", "gone": "Gone", "cheapest": "Nothing"}
    lines = [f"{name} = farm_plugin:{target}" for name, target in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[dtf_lightning.farm.strategies]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", STRATEGIES)
def test_ours(name):
    assert isinstance(strategy_named(name), STRATEGIES[name])


def test_one_of_an_installed_package(plugin):
    """It is found by its entry point, and the scheduler goes by it."""
    assert "last_name" in strategy_names()
    scheduler = ShapeScheduler(strategy_named("last_name"))
    for worker in ("ada", "zoe", "mia"):
        scheduler.worker_offers(WorkerOffer(worker=worker, devices={"cpu": 1}))
    for task in ("a", "b"):
        scheduler.task_ready(ReadyTask(task=task, needs=(Need(amounts={"cpu": 1}),)))
    assert [placement.workers for placement in scheduler.decide(9, 0.0)] == [("zoe",), ("mia",)]


def test_our_names_cannot_be_taken(plugin):
    assert isinstance(strategy_named("cheapest"), STRATEGIES["cheapest"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nearest", "no scheduling strategy is called 'nearest'; expected one of .*fair_share.*last_name.*round_robin"),
        ("gone", "'gone' could not be loaded from 'farm_plugin:Gone': AttributeError"),
        ("nothing", "'nothing' from 'farm_plugin:Nothing' is none: .* got 'never'"),
    ],
)
def test_what_is_no_strategy(plugin, name, words):
    """The error says what was found and what to do."""
    with pytest.raises(SettingsError, match=words):
        strategy_named(name)
