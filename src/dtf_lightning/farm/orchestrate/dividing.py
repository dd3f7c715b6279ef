"""Divides a whole into shares: by weights, and into more shares than there are devices. Pure.

Rules that this file guards:
- Shares are whole numbers from 0 up, and their sum is the whole, exactly.
- By its weight alone a share would be a fraction: it is that, rounded down or up, and never further away.
- Where a device is faster than another, its first share is not smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_SUBTASKS = 1000
"""Of one job: each is a task, and stands in the job's record."""
PIECES = 4
"""Shares for each device: the first one by its speed, the others are taken by whoever has time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Room for one subtask at a time, on some device."""

    label: str = ""
    """Which no worker of another speed carries; "": nothing tells it apart."""
    speed: float = 1.0
    """Inputs a second, or anything that is proportional to it; above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Inputs from `begin` up to `end`, which is not one of them."""

    begin: int
    end: int
    label: str = ""
    """Of the seat for which it was made; "": anybody's."""

    @property
    def size(self) -> int:
        """How many inputs these are."""
        return self.end - self.begin


def divide(whole: int, weights: Sequence[float]) -> list[int]:
    """Return shares in proportion to weights, by the method of the largest remainder. Equal weights: the first get more.

    Args:
        whole: from 0 up.
        weights: one or more, from 0 up; if all are 0, they count as equal.
    """
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact) or Fraction(len(exact))
    if not any(exact):
        exact = [Fraction(1)] * len(exact)
    ideal = [whole * weight / total for weight in exact]
    shares = [int(one) for one in ideal]
    left = whole - sum(shares)
    order = sorted(range(len(shares)), key=lambda index: (shares[index] - ideal[index], index))
    for index in order[:left]:
        shares[index] += 1
    return shares


def stretches(whole: int, seats: Sequence[Seat], pieces: int = PIECES) -> list[Stretch]:
    """Return consecutive stretches that make up the whole; none is empty, and there are `MAX_SUBTASKS` at most.

    With one piece each seat gets one stretch, by its speed. With more, the first half of the inputs goes by speed, one stretch for each
    seat; the rest is cut into equal stretches that anybody takes: so who is slower than was foreseen takes fewer of them, at
    the border of a subtask, and nothing that runs has to be taken away.

    Args:
        seats: one or more.
        pieces: stretches for each seat, from 1 up.
    """
    ranked = sorted(seats, key=lambda seat: (-seat.speed, seat.label))[:MAX_SUBTASKS]
    by_speed = whole if pieces == 1 else (whole + 1) // 2
    first = divide(by_speed, [seat.speed for seat in ranked])
    more = min((pieces - 1) * len(ranked), MAX_SUBTASKS - len(ranked))
    if not more:
        first = divide(whole, [seat.speed for seat in ranked])
    rest = divide(whole - sum(first), [1.0] * more) if more else []
    labels = [seat.label for seat in ranked] + [""] * len(rest)
    found: list[Stretch] = []
    begin = 0
    for size, label in zip((*first, *rest), labels, strict=True):
        if size:
            found.append(Stretch(begin=begin, end=begin + size, label=label))
            begin += size
    return found
