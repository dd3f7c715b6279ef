"""Licences: named things of which a limited number of tasks may hold some at a time."""

from __future__ import annotations

from collections.abc import Iterable

Units = tuple[tuple[str, int], ...]
"""(licence, how many of it)."""


class Licences:
    """How many there are and how many are held. One that nobody has named has none."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.held: dict[str, int] = {}

    def take(self, units: Units) -> None:
        for name, number in units:
            self.held[name] = self.held.get(name, 0) + number

    def give_back(self, units: Units) -> None:
        for name, number in units:
            self.held[name] -= number

    def free(self, name: str) -> int:
        return self.totals.get(name, 0) - self.held.get(name, 0)

    def turns(self, wanted: Iterable[Units]) -> list[bool]:
        """Whose turn it is, of shapes in the order of their ranks, the best first.

        At each licence strictly in this order: who waits for several units of it is not passed by those who need one.
        """
        claimed: dict[str, int] = {}
        answers = []
        for units in wanted:
            answers.append(all(self.free(name) - claimed.get(name, 0) >= number for name, number in units))
            for name, number in units:
                claimed[name] = claimed.get(name, 0) + number
        return answers
