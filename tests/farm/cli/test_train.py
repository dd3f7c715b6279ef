"""`dtf farm train`: what it submits, and what it refuses."""

from __future__ import annotations

import argparse

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli import tasks, train
from dtf_lightning.farm.client import TaskInfo
from dtf_lightning.farm.trainings import launch


class Farm:
    """A client that keeps what it is asked to train."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def train(self, script, arguments, **fields):
        self.asked = script, arguments, fields
        return "the-id"


def parsed(words):
    parser = argparse.ArgumentParser()
    train.add_train(parser.add_subparsers(required=True))
    return parser.parse_args(["train", *words])


def test_what_it_submits(monkeypatch, capsys):
    farm = Farm()
    monkeypatch.setattr(train, "connect", lambda _: farm)
    words = ["--after", "A", "--key", "K", "--name", "N", "--rdzv-conf", "user=u"]
    words += ["--workers", "1:8", "--needs", "gpu=1", "--endpoint", "e:1", "--no-source", "train.py", "--epochs", "9"]
    assert train._train(parsed(words)) == 0
    script, arguments, fields = farm.asked
    assert (script, arguments) == ("train.py", ["--epochs", "9"])
    assert (fields["workers"], fields["endpoint"], fields["priority"]) == ((1, 8), "e:1", -10)
    assert [fields[name] for name in ("after", "key", "name", "options")] == [["A"], "K", "N", {"user": "u"}]
    assert fields["needs"] == [{"amounts": {"gpu": 1.0}, "labels": []}]
    assert capsys.readouterr().out == "the-id\n"


def test_the_command_line_of_a_part():
    words = launch.command("s.py", ["-x"], workers=(1, 4), endpoint="e:1", options={"user": "u"})
    words = list(launch.of_run(words, "r"))
    assert words[:5] == ["python", "-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1"]
    assert words[5:] == [
        "--rdzv-backend=etcd",
        "--rdzv-endpoint=e:1",
        "--rdzv-id=r",
        "--rdzv-conf=resume=true,progress=$DTF_FARM_RESULTS/training.jsonl,user=u",
        "s.py",
        "-x",
    ]


def test_what_may_be_suspended_trains_with_the_callback():
    """Else its state would be lost: its torchrun refuses a script without it, and the farm restart mode that was asked for."""
    words = launch.command("s.py", [], workers=(1, 1), endpoint="e:1", options={"mode": "auto"}, suspended=True)
    assert "mode=live" in words[8]
    with pytest.raises(SettingsError, match=r"restart mode cannot be suspended .*leave suspend_for out"):
        launch.command("s.py", [], workers=(1, 1), endpoint="e:1", options={"mode": "restart"}, suspended=True)
    launch.command("s.py", [], workers=(1, 1), endpoint="e:1", options={"mode": "restart"})


@pytest.mark.parametrize("text", ["4", "1:", "a:b", "1:2:3", "-1:2"])
def test_numbers_that_cannot_be_read(text):
    with pytest.raises(SettingsError, match="expected MIN:MAX"):
        launch.read_workers(text)


@pytest.mark.parametrize(
    ("workers", "why"), [((0, 2), "minimum must be 1"), ((3, 2), "at most the maximum"), ((1, 65), "64 at most")]
)
def test_numbers_that_cannot_be(workers, why):
    with pytest.raises(SettingsError, match=why):
        launch.command("s.py", [], workers=workers, endpoint="e:1")


def test_what_a_task_shows_of_a_training(capsys):
    borrowed = {"part": "T[1]", "worker": "w", "wanted_by": "X", "asked": "10:00", "left": "10:01", "back": None}
    world = {"running": 1, "wanted": 2, "minimum": 1, "workers": {"T[0]": "v"}, "leaving": [], "away": []}
    world |= {"borrowings": [borrowed, borrowed | {"back": "10:05"}], "num_borrowings": 60, "borrowed_seconds": 240.4}
    tasks._show_training(TaskInfo("T", "running", {"metadata": {"training": world}}))
    assert capsys.readouterr().out.splitlines() == [
        "  world: 1 of 2 parts run, 1 it keeps",
        "  part T[0]: runs on v",
        "  borrowed: w of T[1] by X, asked 10:00, left 10:01, not back yet",
        "  borrowed: w of T[1] by X, asked 10:00, left 10:01, back 10:05",
        "  borrowings: 60, of 240 s in all",
    ]
