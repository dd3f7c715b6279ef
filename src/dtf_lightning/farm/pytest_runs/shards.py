"""How the tests of a run are cut into shards, each of which is one task of the farm. Pure.

Rules that this file guards:
- Every test is in exactly one shard; in a shard tests stand in the order in which they would run here.
- Tests of one unit that need the same are in one shard: they share what is set up once for all of them.
- All tests of a shard need the same.
- Of the cuts of what needs the same into so many runs of neighbours, the slowest shard is as fast as can be.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = 0.1
"""Seconds of a test where nothing is known of any."""
SHORT = 0.5
"""Seconds of tests that are worth the start of a process."""
LONG = 20.0
"""Seconds from which on a shard is cut in two, so that quick workers take what slow ones have left."""
MAX_SHARDS = 256
"""Each is a task, and is followed by a thread."""
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A test that is to run."""

    unit: Hashable
    """Tests with the same unit stay together."""
    needs: Hashable
    """Tests with other needs do not run in the same shard."""
    seconds: float


def expected_seconds(nodeids: Sequence[str], known: Mapping[str, float]) -> list[float]:
    """Return how long each test takes: what is known of it, or the median of what is known of the others."""
    durations = sorted(known[nodeid] for nodeid in nodeids if nodeid in known)
    middle = durations[len(durations) // 2] if durations else UNKNOWN
    return [known.get(nodeid, middle) for nodeid in nodeids]


def num_shards(seconds: float, slots: int, asked: int | None = None) -> int:
    """Return into how many shards tests are cut that need the same.

    Args:
        seconds: that they take together.
        slots: how many shards the farm's workers can run at once.
        asked: what the user wants; counts, as far as `MAX_SHARDS` goes.
    """
    if asked:
        return min(asked, MAX_SHARDS)
    slots = max(1, slots)
    number = min(slots, max(1, math.ceil(seconds / SHORT)))
    if seconds / slots > LONG:
        number = 2 * slots
    return min(number, MAX_SHARDS)


def cut(tests: Sequence[Selected], numbers: Mapping[Hashable, int]) -> list[list[int]]:
    """Return the shards as numbers of tests, that with the first test first.

    Args:
        tests: in the order in which they would run here.
        numbers: needs -> into how many shards at most what needs this is cut.
    """
    blocks: dict[Hashable, dict[Hashable, list[int]]] = {}
    for index, test in enumerate(tests):
        blocks.setdefault(test.needs, {}).setdefault(test.unit, []).append(index)
    shards = []
    for needs, units in blocks.items():
        in_order = list(units.values())
        weights = [sum(tests[index].seconds for index in block) for block in in_order]
        for first, last in _runs(weights, max(1, numbers[needs])):
            shards.append(sorted(index for block in in_order[first:last] for index in block))
    return sorted(shards)


def _runs(weights: Sequence[float], number: int) -> list[tuple[int, int]]:
    """Return up to so many runs of neighbours, as first and behind the last, whose heaviest is as light as can be."""
    low, high = max(weights), sum(weights)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if len(_filled(weights, middle)) <= number:
            high = middle
        else:
            low = middle
    lightest = _filled(weights, low)
    return lightest if len(lightest) <= number else _filled(weights, high)


def _filled(weights: Sequence[float], room: float) -> list[tuple[int, int]]:
    runs, first, load = [], 0, 0.0
    for index, weight in enumerate(weights):
        if index > first and load + weight > room:
            runs.append((first, index))
            first, load = index, 0.0
        load += weight
    return [*runs, (first, len(weights))]
