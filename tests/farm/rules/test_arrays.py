"""Which instances of an array come to life next, and what their ends come to."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.record.task_id import array_and_index, array_id, instance_id, is_array_id, new_task_id
from dtf_lightning.farm.rules.arrays import AT_ONCE, MAX_ARRAY, WINDOW, Tally, births, together

NUMBERS = st.integers(0, MAX_ARRAY)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_births(first, second, waiting):
    """They go on where the last ones ended, never behind the array's end, and no more wait than the window holds."""
    born, count = sorted((first, second))
    numbers = births(born, count, waiting)
    assert numbers.start == born
    assert born <= numbers.stop <= count
    assert len(numbers) <= AT_ONCE
    assert not numbers or waiting + len(numbers) <= WINDOW
    assert bool(numbers) == (born < count and waiting < WINDOW)


@given(st.integers(1, 3_000), st.integers(0, 1 << 32))
def test_each_is_born_once(count, seed):
    chance = random.Random(seed)  # hypothesis itself would draw thousands of numbers for one example
    born: list[int] = []
    waiting = 0
    while len(born) < count:
        numbers = births(len(born), count, waiting)
        born += numbers
        waiting += len(numbers)
        waiting -= chance.randint(min(1, waiting), waiting)
    assert born == list(range(count))


@given(st.floats(0, 4e9), st.integers(0, (1 << 74) - 1), st.integers(0, MAX_ARRAY - 1))
def test_ids(wall, chance, index):
    """An instance's id tells its array and its number, and carries the array's time."""
    array = array_id(new_task_id(wall, chance))
    assert is_array_id(array)
    assert array_id(array) == array
    task = instance_id(array, index)
    assert array_and_index(task) == (array, index)
    assert not is_array_id(task)
    assert array_id(task) == array


def test_what_is_no_instance():
    assert array_and_index(array_id(new_task_id(1.0, 5))) is None
    assert array_and_index("no-id") is None
    assert array_and_index("") is None


def test_tally():
    assert Tally(outcomes={"completed": 3}).completed
    tally = Tally(outcomes={"completed": 3, "failed": 2, "expired": 1})
    assert not tally.completed
    assert tally.reason == "3 of its 6 instances did not complete: 1 expired, 2 failed"


def test_the_furthest_part_tells_of_the_world_and_all_of_the_goodput():
    old = {"generation": 3, "world_size": 4, "step": 90, "goodput": 0.9, "samples_per_second": 9.0}
    new = {"generation": 4, "world_size": 3, "step": 80, "goodput": 0.5}
    assert together([old, new, {"accuracy": 1.0}]) == {"generation": 4, "world_size": 3, "step": 80, "goodput": 0.7}
    assert together([{"generation": 1, "world_size": 2}]) == {"generation": 1, "world_size": 2}
    assert together([{"accuracy": 1.0}]) == {}
