"""Chooses the state that all workers go on with after a restart: the newest there is, wherever it lies.

Rules that this file guards:

* the newest position wins; at equal positions a snapshot comes first (it is at the exact place in the loops), then what
  the workers have loaded themselves (`ckpt_path`), then a checkpoint in the run's folders;
* every worker comes to the same choice from the same offers;
* a rank that cannot read what it offered is not asked again: the next best source is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from dtf_lightning.elastic.rules.resume import Position


class SourceKind(IntEnum):
    """The kinds of sources, in the order of preference at an equal position, the least preferred first."""

    CHECKPOINT = 1
    LOADED = 2
    """What the worker holds already: an initial state, or what the user's `ckpt_path` held."""
    SNAPSHOT = 3


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One state that one rank could give to the others."""

    rank: int
    kind: SourceKind
    position: Position
    where: str = ""
    """The file, as the offering rank knows it."""

    @property
    def worth(self) -> tuple[Position, SourceKind]:
        # Whether the state was trained in this process means nothing here: after a restart none was.
        return replace(self.position, trained=False), self.kind


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One source, and the ranks that can read it."""

    kind: SourceKind
    position: Position
    offers: tuple[Offer, ...]
    """The offers of this source, at most one per rank, in rank order."""

    def offer_of(self, rank: int) -> Offer | None:
        """Return what this rank could give of the chosen source; `None` if nothing."""
        return next((offer for offer in self.offers if offer.rank == rank), None)


def choose(offers: Sequence[Offer]) -> Choice:
    """Choose the best source. Raises `ValueError` without any offer: every rank offers at least what it holds."""
    if not offers:
        raise ValueError("choose needs at least what one rank holds, got no offer")
    best = max(offer.worth for offer in offers)
    able = {offer.rank: offer for offer in sorted(offers, key=lambda offer: offer.rank) if offer.worth == best}
    return Choice(kind=best[1], position=best[0], offers=tuple(able.values()))


def senders(holders: Sequence[int], hosts: Sequence[str]) -> Mapping[int, int]:
    """Return for each receiver the holder that sends to it: one on its own host, if any; else they are spread evenly.

    Args:
        holders: the ranks that hold the state.
        hosts: every rank's host.
    """
    receivers = [rank for rank in range(len(hosts)) if rank not in holders]
    local = {host: [holder for holder in holders if hosts[holder] == host] for host in hosts}
    sources = {}
    for number, receiver in enumerate(receivers):
        near = local[hosts[receiver]] or list(holders)
        sources[receiver] = near[number % len(near)]
    return sources
