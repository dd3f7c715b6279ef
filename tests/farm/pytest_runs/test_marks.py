"""What a mark can say, and where a test with it can run."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.pytest_runs.marks import NAMES, Marked, Offer, TestNeeds, num_slots, read_marks, why_nowhere
from dtf_lightning.farm.pytest_runs.words import MARK

SMALL = Offer(devices={"cpu": 2.0, "memory": 2048.0}, labels=("linux",))
LARGE = Offer(devices={"cpu": 8.0, "gpu": 2.0, "memory": 65536.0}, labels=("linux", "ssd"))


def read(**named):
    return read_marks([((), named)])


def test_everything_that_it_says():
    marked = read(gpu=1, memory="4GiB", needs={"tpu": 2}, labels=["ssd"], exclusive=True, timeout=600, together="db")
    assert marked.needs.request == {
        "amounts": {"cpu": 1.0, "gpu": 1.0, "memory": 4096.0, "tpu": 2.0},
        "labels": ["ssd"],
        "exclusive": True,
    }
    assert (marked.timeout, marked.together) == (600.0, "db")
    assert read_marks([]) == Marked()
    assert all(f"{name}=" in MARK for name in NAMES)


def test_the_closest_counts():
    """A mark of the test before one of its class or module."""
    marked = read_marks([((), {"timeout": 1}), ((), {"timeout": 2, "gpu": 1})])
    assert (marked.timeout, dict(marked.needs.amounts)["gpu"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"gpus": 1}, "did you mean 'gpu'"),
        ({"gpu": 0}, "gpu=0"),
        ({"gpu": True}, "gpu=True"),
        ({"memory": "4 GB"}, "expected such as '4GiB'"),
        ({"timeout": "1m"}, "timeout='1m'"),
        ({"needs": {"tpu": -1}}, "tpu=-1"),
    ],
)
def test_what_it_cannot_say(named, told):
    with pytest.raises(SettingsError) as refused:
        read(**named)
    assert told in str(refused.value)


def test_a_mark_takes_names():
    with pytest.raises(SettingsError):
        read_marks([((1,), {})])


def test_slots():
    """What all workers can run at once."""
    offers = [SMALL, LARGE]
    assert num_slots(offers, TestNeeds()) == 10
    assert num_slots(offers, read(gpu=1).needs) == 2
    assert num_slots(offers, read(exclusive=True).needs) == 2
    assert num_slots(offers, read(memory="1GiB").needs) == 2 + 8
    assert num_slots(offers, read(gpu=4).needs) == 0


def test_why_nowhere():
    """Only where no worker can: what the nearest lacks."""
    assert why_nowhere([SMALL, LARGE], read(gpu=2).needs) == ""
    assert why_nowhere([SMALL], read(gpu=1).needs) == "the farm's one worker cannot run it: it lacks 1 x gpu (it has 0)"
    told = why_nowhere([SMALL, LARGE], read(gpu=4, labels=["ssd"]).needs)
    assert told == "none of the farm's 2 workers can run it: the nearest lacks 4 x gpu (it has 2)"
    assert why_nowhere([], TestNeeds()) == ""


def test_labels_of_all_tests_are_added():
    assert read(labels=["ssd"]).needs.with_labels(("linux",)).labels == ("linux", "ssd")
