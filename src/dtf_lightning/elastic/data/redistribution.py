"""Plans which worker holds which data shard, and which shards move when the world changes.

Workers are numbered by rank, shards from 0. An assignment is an array of ranks, one per shard. Rules that this file
guards:

* every shard has exactly one owner, in any world (`validate`);
* balanced means that no two workers differ by more than one shard; with weights, by no more than the heaviest shard;
* `incremental` without weights moves the least shards that can restore balance. Proof: with q, r = divmod(shards,
  workers) a balanced world has r workers of q + 1 and the rest of q. A worker that keeps k of its shards must give away
  the surplus over its quota, and shards of workers that are gone must move anyway. So moves = orphans + sum of
  surpluses, which is least when the quotas of q + 1 go to the r survivors that hold the most. Nothing else moves: what
  is given away fills deficits one by one.
* plans are functions of their arguments: every rank computes the same plan.

With weights the least number of moves is bin packing, which cannot be computed in a second; `incremental` then moves
orphans first, and after that from the heaviest to the lightest worker until they differ by no more than the heaviest
shard.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dtf_lightning.errors import SettingsError

Ranks = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Mode = Literal["full", "incremental"]
MODES: tuple[Mode, ...] = ("full", "incremental")
GONE = -1
"""In an assignment: the shard's owner is not in the new world."""


@dataclass(frozen=True, kw_only=True)
class Redistribution:
    """The way from the old world's assignment of shards to the new one's."""

    # (num_shards,): rank in the new world of the worker that held the shard before; GONE if it is not there
    before: Ranks
    # (num_shards,): rank of the worker that holds the shard now
    owners: Ranks
    # (num_shards,)
    weights: Weights
    num_workers: int

    @property
    def moved(self) -> Ranks:
        """The shards that change hands, in order. Shape (num_moved,)."""
        return np.flatnonzero(self.before != self.owners)

    def transfers(self) -> list[tuple[int, int, int]]:
        """Return (shard, from, to) for every shard that moves; `from` is `GONE` where the owner has left."""
        moved = self.moved
        return list(zip(moved.tolist(), self.before[moved].tolist(), self.owners[moved].tolist(), strict=True))

    def shards_of(self, rank: int) -> list[int]:
        return np.flatnonzero(self.owners == rank).tolist()

    @property
    def cost(self) -> float:
        """The weight of all shards that move."""
        return float(self.weights[self.moved].sum())

    @property
    def loads(self) -> Weights:
        """The weight that each worker holds. Shape (num_workers,)."""
        return np.bincount(self.owners, self.weights, self.num_workers).astype(np.float64)

    def validate(self) -> None:
        """Check the plan against its own rules. Raises `AssertionError` where it breaks them, which is our bug."""
        assert self.owners.shape == self.before.shape == self.weights.shape
        assert len(self.owners) == 0 or (self.owners.min() >= 0 and self.owners.max() < self.num_workers), "no owner"
        if len(self.owners):
            spread = float(self.loads.max() - self.loads.min())
            assert spread <= float(self.weights.max()) * (1 + 1e-9), f"unbalanced by {spread}"


def plan(
    num_shards: int,
    num_workers: int,
    *,
    before: Sequence[int] | Ranks | None = None,
    mode: Mode = "incremental",
    weights: Sequence[float] | Weights | None = None,
) -> Redistribution:
    """Assign shards to the workers of a new world.

    Args:
        num_shards: the number of shards of the data set.
        num_workers: the world size.
        before: for each shard, the rank **in the new world** of the worker that holds it, or `GONE` (see `carry_over`);
            `None`: no worker holds any shard.
        mode: `"full"` plans as if no worker held anything, so that rank r's shards depend on the world only;
            `"incremental"` moves the least.
        weights: the size of each shard, above 0; `None`: all are of the same size.

    Raises:
        SettingsError: no workers, unknown mode, or arrays of another length or with other values.
    """
    if num_workers < 1 or num_shards < 0:
        raise SettingsError(
            f"cannot plan {num_shards} shards for {num_workers} workers; there must be at least one worker"
        )
    if mode not in MODES:
        raise SettingsError(f"mode={mode!r} is unknown; choose one of {', '.join(map(repr, MODES))}")
    held = np.full(num_shards, GONE, np.int64) if before is None else np.asarray(before, np.int64)
    size = np.ones(num_shards) if weights is None else np.asarray(weights, np.float64)
    for name, array in (("before", held), ("weights", size)):
        if array.shape != (num_shards,):
            raise SettingsError(
                f"{name} has the shape {array.shape}, expected one entry for each of {num_shards} shards"
            )
    if len(held) and not (held.min() >= GONE and held.max() < num_workers):
        raise SettingsError(f"before has ranks from {held.min()} to {held.max()}; expected {GONE} to {num_workers - 1}")
    if not bool(np.all(np.isfinite(size) & (size > 0))):
        raise SettingsError("weights must be finite numbers above 0")
    if weights is None:
        owners = _least_moves(held, num_workers) if mode == "incremental" else _contiguous(num_shards, num_workers)
    elif mode == "incremental":
        owners = _weighted(held, num_workers, size)
    else:
        owners = _in_rounds(num_workers, size)
    made = Redistribution(before=held, owners=owners, weights=size, num_workers=num_workers)
    made.validate()
    return made


def carry_over(owners: Sequence[int] | Ranks, new_rank: Mapping[int, int]) -> Ranks:
    """Return an old world's assignment in the new world's ranks.

    An owner that is not in `new_rank` (old to new rank) becomes `GONE`.
    """
    old = np.asarray(owners, np.int64)
    size = 1 + max(int(old.max(initial=GONE)), max(new_rank, default=0))
    table = np.full(size + 1, GONE, np.int64)  # the last entry stands for GONE
    for before, now in new_rank.items():
        table[before] = now
    return table[old]


def contiguous_ranges(length: int, num_workers: int) -> list[tuple[int, int]]:
    """Return (begin, end) of each worker's range; the first `length % num_workers` ranges hold one more.

    For example, 100 over 3 workers gives 0-34, 34-67 and 67-100.

    Raises `SettingsError` without workers.
    """
    if num_workers < 1 or length < 0:
        raise SettingsError(f"cannot divide {length} among {num_workers} workers; there must be at least one")
    quota, extra = divmod(length, num_workers)
    bounds = [rank * quota + min(rank, extra) for rank in range(num_workers + 1)]
    return list(pairwise(bounds))


def _quotas(num_shards: int, held: Ranks) -> Ranks:
    """Return how many shards each worker is to hold; one more for those that hold the most. Shape (num_workers,)."""
    quota, extra = divmod(num_shards, len(held))
    quotas = np.full(len(held), quota, np.int64)
    quotas[np.argsort(-held, kind="stable")[:extra]] += 1
    return quotas


def _contiguous(num_shards: int, num_workers: int) -> Ranks:
    return np.repeat(np.arange(num_workers), _quotas(num_shards, np.zeros(num_workers, np.int64)))


def _least_moves(before: Ranks, num_workers: int) -> Ranks:
    held = np.bincount(before[before >= 0], minlength=num_workers)
    quotas = _quotas(len(before), held)
    # (num_shards,): shards in the order of their owners, and each shard's place among its owner's; GONE comes first
    order = np.argsort(before, kind="stable")
    starts = np.concatenate([[0, len(before) - int(held.sum())], len(before) - int(held.sum()) + np.cumsum(held)])
    place = np.arange(len(before)) - starts[before[order] + 1]
    allowed = np.concatenate([[0], quotas])[before[order] + 1]
    to_move = np.sort(order[place >= allowed])
    owners = before.copy()
    owners[to_move] = np.repeat(np.arange(num_workers), np.maximum(0, quotas - held))
    return owners


def _in_rounds(num_workers: int, weights: Weights) -> Ranks:
    """Assign all shards anew: in each round the lightest worker gets the heaviest shard of the round, and so on.

    As loads ascend while weights descend, no two workers can come to differ by more than the heaviest shard.
    """
    owners = np.empty(len(weights), np.int64)
    loads = np.zeros(num_workers)
    order = np.argsort(-weights, kind="stable")
    for begin in range(0, len(order), num_workers):
        shards = order[begin : begin + num_workers]
        lightest = np.argsort(loads, kind="stable")[: len(shards)]
        owners[shards] = lightest
        loads[lightest] += weights[shards]
    return owners


def _weighted(before: Ranks, num_workers: int, weights: Weights) -> Ranks:
    owners = before.copy()
    loads = np.bincount(owners[owners >= 0], weights[owners >= 0], num_workers)
    orphans = np.flatnonzero(owners == GONE)
    # Heaviest first onto the lightest worker (Graham 1969, "Bounds on multiprocessing timing anomalies").
    lightest = [(float(load), rank) for rank, load in enumerate(loads)]
    heapq.heapify(lightest)
    for shard in orphans[np.argsort(-weights[orphans], kind="stable")].tolist():
        load, rank = lightest[0]
        owners[shard] = rank
        heapq.heapreplace(lightest, (load + float(weights[shard]), rank))
    _even_out(owners, weights, num_workers)
    return owners


def _even_out(owners: Ranks, weights: Weights, num_workers: int) -> None:
    """Move shards, in place, from the heaviest to the lightest worker until they differ by no more than one shard."""
    loads = np.bincount(owners, weights, num_workers)
    limit = float(weights.max(initial=0.0))
    stacks: dict[int, list[int]] = {}
    lightest = [(float(load), rank) for rank, load in enumerate(loads)]
    heaviest = [(-load, rank) for load, rank in lightest]
    heapq.heapify(lightest)
    heapq.heapify(heaviest)
    while True:
        low, to = _current(lightest, loads, 1)
        high, source = _current(heaviest, loads, -1)
        if high - low <= limit:
            return
        if source not in stacks:
            mine = np.flatnonzero(owners == source)
            stacks[source] = mine[np.argsort(weights[mine], kind="stable")].tolist()
        # Any shard of the heaviest weighs less than the gap: moving it brings the two closer together.
        shard = stacks[source].pop()
        owners[shard] = to
        if to in stacks:
            stacks[to].append(shard)
            stacks[to].sort(key=lambda other: float(weights[other]))
        loads[source] -= weights[shard]
        loads[to] += weights[shard]
        for rank in (source, to):
            heapq.heappush(lightest, (float(loads[rank]), rank))
            heapq.heappush(heaviest, (-float(loads[rank]), rank))


def _current(heap: list[tuple[float, int]], loads: Any, sign: int) -> tuple[float, int]:
    """Return the top of a heap in which outdated entries are left behind."""
    while sign * heap[0][0] != loads[heap[0][1]]:
        heapq.heappop(heap)
    return float(loads[heap[0][1]]), heap[0][1]
