"""Who could take a part of a job, how many parts at a time, and how fast: seats, from workers and what they have done. Pure.

Workers with the same devices and labels are one **device class**. The speed of a class is that of its workers together, as far as
they have done parts of jobs of this name; a class that has done none counts as fast as those that have, in the middle.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.farm.orchestrate.dividing import MAX_SUBTASKS, Seat
from dtf_lightning.farm.rules.needs import DEFAULT_NEED, Need, lacking, offered, quantised


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a worker has."""

    devices: Mapping[str, float]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A part of a job that was done."""

    worker: str
    inputs: int
    seconds: float


def seats_at(offer: Offer, needs: Sequence[Need]) -> int:
    """Return how many parts a worker could do at once when it is idle, by the first alternative that fits."""
    for need in needs or (DEFAULT_NEED,):
        if lacking(need, offer.devices, offer.labels):
            continue
        if need.exclusive:
            return 1
        wanted = quantised(need.amounts)
        room = [offered(offer.devices.get(resource, 0.0)) // amount for resource, amount in wanted.items()]
        return min([*room, MAX_SUBTASKS])
    return 0


def seats(workers: Mapping[str, Offer], needs: Sequence[Need], measured: Iterable[Measured]) -> list[Seat]:
    """Return the seats of all workers, with the speeds of their classes, and labels that tell these apart where there are such."""
    classes: dict[tuple[tuple[tuple[str, float], ...], tuple[str, ...]], list[str]] = {}
    for name, offer in sorted(workers.items()):
        if seats_at(offer, needs):
            key = tuple(sorted(offer.devices.items())), tuple(sorted(offer.labels))
            classes.setdefault(key, []).append(name)
    of_worker: dict[str, list[Measured]] = {}
    for one in measured:
        if one.seconds > 0 and one.inputs > 0:
            of_worker.setdefault(one.worker, []).append(one)
    known: dict[int, float] = {}
    for number, names in enumerate(classes.values()):
        done = [one for name in names for one in of_worker.get(name, ())]
        if done:
            known[number] = sum(one.inputs for one in done) / sum(one.seconds for one in done)
    usual = statistics.median(known.values()) if known else 1.0
    found: list[Seat] = []
    for number, ((_, labels), names) in enumerate(classes.items()):
        others = [set(other) for (_, other), who in classes.items() if who is not names]
        own = [label for label in labels if not any(label in other for other in others)]
        seat = Seat(label=own[0] if own and others else "", speed=known.get(number, usual))
        found += [seat] * sum(seats_at(workers[name], needs) for name in names)
    return found


def by_what_can_be_steered(found: Sequence[Seat]) -> list[Seat]:
    """Return seats of which those that no label tells apart count as equally fast: a share cannot be sent to one of them."""
    alike = [seat.speed for seat in found if not seat.label]
    usual = statistics.fmean(alike) if alike else 1.0
    return [seat if seat.label else Seat(speed=usual) for seat in found]
