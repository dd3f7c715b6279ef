"""What is noted of the devices that a training gave back: each borrowing once, the latest ones, and the sums of all."""

from __future__ import annotations

from dtf_lightning.farm.record.values import Borrowing, Borrowings
from dtf_lightning.farm.server.scheduling.lending import LATEST, noted


def borrowing(part, asked, **rest):
    return Borrowing(part=part, worker="w", wanted_by="t", asked=asked, left=asked + 1.0, **rest)


def test_the_latest_are_listed_and_all_are_counted():
    told = Borrowings()
    for number in range(3 * LATEST):
        told = noted(told, [borrowing("p", 10.0 * number)], {})
        told = noted(told, [], {"p": 10.0 * number + 5.0})
    assert (told.number, told.seconds) == (3 * LATEST, 3 * LATEST * 4.0)
    assert [one.asked for one in told.latest] == [10.0 * number for number in range(2 * LATEST, 3 * LATEST)]
    assert all(one.back == one.asked + 5.0 for one in told.latest)


def test_only_those_that_are_away_come_back():
    told = noted(Borrowings(), [borrowing("p", 1.0), borrowing("q", 1.0)], {"q": 4.0})
    assert [one.back for one in told.latest] == [0.0, 4.0]
    again = noted(told, [borrowing("q", 6.0)], {})
    assert [one.back for one in again.latest] == [0.0, 4.0, 0.0]
    assert (again.number, again.seconds) == (3, 2.0)
    assert noted(again, [], {"r": 9.0}) == again
