"""A run's figures by what its parts have reported."""

from __future__ import annotations

from dtf_lightning.farm.rules.run_figures import together


def test_the_furthest_part_tells_of_the_world_and_all_of_the_goodput():
    old = {"generation": 3, "world_size": 4, "step": 90, "goodput": 0.9, "samples_per_second": 9.0}
    new = {"generation": 4, "world_size": 3, "step": 80, "goodput": 0.5}
    assert together([old, new, {"accuracy": 1.0}]) == {"generation": 4, "world_size": 3, "step": 80, "goodput": 0.7}
    assert together([{"generation": 1, "world_size": 2}]) == {"generation": 1, "world_size": 2}
    assert together([{"accuracy": 1.0}]) == {}
