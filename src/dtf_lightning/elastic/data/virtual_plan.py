"""Plans training defined by V logical ranks: which worker computes which of them, and in which order sums are made.

Rules that this file guards:

* logical rank l of a step takes the samples `order[cursor + l * B : cursor + (l + 1) * B]`, in any world; a short last
  step fills the first logical ranks;
* a worker computes a contiguous block of logical ranks, the first `V % world` workers one more than the others, each as
  a micro-batch of its own; a worker that has none left computes a stand-in batch that counts for nothing;
* sums over logical ranks follow one binary tree, whose node (level, i) covers the leaves `[i * 2**level, (i + 1) *
  2**level)`. A worker adds the whole subtrees of its block; floating-point addition is commutative but not associative,
  so the bits of a sum depend on the tree alone, not on the world.

Source of the idea: VirtualFlow (Or et al. 2022), EasyScale (Li et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset

from dtf_lightning.elastic.data.random_numbers import seed_process
from dtf_lightning.errors import SettingsError

Node = tuple[int, int]
"""(level, index) of a node of the tree; level 0 holds the logical ranks."""
Value = TypeVar("Value")


def block(rank: int, world_size: int, num_logical: int) -> range:
    """Return the logical ranks of a worker; for example 0-2, 3-5 and 6-7 when three workers share eight."""
    size, larger = divmod(num_logical, world_size)
    start = rank * size + min(rank, larger)
    return range(start, start + size + (rank < larger))


def whole_subtrees(leaves: Iterable[int]) -> list[Node]:
    """Return the nodes into which a worker can add its block, for example (0, 3) and (1, 2) for the leaves 3-5."""
    nodes: list[Node] = []
    for leaf in leaves:
        nodes.append((0, leaf))
        while _siblings(nodes):
            nodes[-2:] = [_parent(nodes[-1])]
    return nodes


def _siblings(nodes: Sequence[Node]) -> bool:
    return (
        len(nodes) > 1 and nodes[-2][0] == nodes[-1][0] and nodes[-1][1] % 2 == 1 and nodes[-2][1] + 1 == nodes[-1][1]
    )


def _parent(node: Node) -> Node:
    return node[0] + 1, node[1] // 2


class TreeSum:
    """Adds leaves that come one after the other, along the tree; keeps as few partial sums as possible.

    Args:
        add: adds the second value to the first, in place.
    """

    def __init__(self, add: Callable[[Any, Any], None]) -> None:
        self._add = add
        self.nodes: list[Node] = []
        self.sums: list[Any] = []

    def push(self, leaf: int, value: Any) -> None:
        """Add the next leaf."""
        self.nodes.append((0, leaf))
        self.sums.append(value)
        while _siblings(self.nodes):
            self.nodes[-2:] = [_parent(self.nodes[-1])]
            last = self.sums.pop()
            self._add(self.sums[-1], last)


def total(sums: dict[Node, Value], num_leaves: int, add: Callable[[Value, Value], None]) -> Value:
    """Return the sum over all leaves from the sums of whole subtrees, which are changed."""

    def under(node: Node) -> Value:
        if node in sums:
            return sums[node]
        level, index = node
        left = under((level - 1, 2 * index))
        if (2 * index + 1) << (level - 1) < num_leaves:
            add(left, under((level - 1, 2 * index + 1)))
        return left

    return under(((num_leaves - 1).bit_length(), 0))


class VirtualPlan:
    """The plan of the rest of an epoch for one world and V logical ranks; used like a `StepPlan`.

    Args:
        consumed: the samples of the epoch that are done, which are whole steps.
        dataset_size: the samples of the epoch.
        batch_size: the batch size of a logical rank.
        drop_last: whether a short last step is left out.

    Raises:
        SettingsError: nothing is left of an epoch that has not begun.
    """

    def __init__(
        self,
        num_logical: int,
        *,
        consumed: int,
        dataset_size: int,
        world_size: int,
        batch_size: int,
        drop_last: bool = False,
    ) -> None:
        self.num_logical, self.world_size, self.batch_size = num_logical, world_size, batch_size
        self.step_size = num_logical * batch_size
        self.first_step = consumed // self.step_size
        """The step of the epoch, counted from 0, at which this plan begins."""
        left = dataset_size - consumed
        if drop_last:
            left -= left % self.step_size
            if consumed == 0 == left:
                raise SettingsError(
                    f"virtual_ranks={num_logical} times the loader's batch size {batch_size} makes steps of "
                    f"{self.step_size} samples; the data set has {dataset_size}, and a short last step is to be dropped. "
                    "Use a smaller batch size, fewer virtual ranks, or tail='exact'."
                )
        self._left = left
        self.accumulate = -(-num_logical // world_size)
        """The number of micro-batches per step, the same for every step."""
        self.blocks = [block(rank, world_size, num_logical) for rank in range(world_size)]
        num_steps = -(-left // self.step_size)
        full = self._micro_batches(0) if num_steps else []
        self.sizes: list[int] = full * (num_steps - 1) + (self._micro_batches(num_steps - 1) if num_steps else [])
        """The number of samples of each micro-batch, over all workers."""

    def __len__(self) -> int:
        return len(self.sizes)

    def logical_rank(self, index: int, rank: int) -> int | None:
        """Return the logical rank whose part the worker computes as micro-batch `index`; `None`: it has none."""
        mine, place = self.blocks[rank], index % self.accumulate
        return mine[place] if place < len(mine) else None

    def share(self, index: int, rank: int) -> int:
        """Return the samples that count in the worker's micro-batch; 0: it computes a stand-in batch."""
        logical = self.logical_rank(index, rank)
        return 0 if logical is None else self._samples(index // self.accumulate, logical)

    def weight(self, index: int, rank: int) -> float:
        """Return the factor of the micro-batch's mean loss with which the sum over logical ranks is the step's mean."""
        return self.share(index, rank) / self._step_total(index // self.accumulate)

    def positions(self, index: int, rank: int) -> range:
        """Return what the worker draws for the micro-batch, as positions from where the plan begins.

        A stand-in batch is logical rank 0's part.
        """
        step = index // self.accumulate
        share, logical = self.share(index, rank), self.logical_rank(index, rank)
        if share == 0 or logical is None:
            share, logical = self._samples(step, 0), 0
        start = step * self.step_size + logical * self.batch_size
        return range(start, start + share)

    def drawn(self, index: int, rank: int) -> int:
        """Return the number of samples that the worker draws for the micro-batch, or for its stand-in batch."""
        return len(self.positions(index, rank))

    def place(self, index: int, rank: int) -> tuple[int, int]:
        """Return (step in the epoch, logical rank) of what the worker draws."""
        logical = self.logical_rank(index, rank)
        return self.first_step + index // self.accumulate, 0 if logical is None else logical

    def _step_total(self, step: int) -> int:
        return min(self.step_size, self._left - step * self.step_size)

    def _samples(self, step: int, logical: int) -> int:
        return max(0, min(self.batch_size, self._step_total(step) - logical * self.batch_size))

    def _micro_batches(self, step: int) -> list[int]:
        first = step * self.accumulate
        return [
            sum(self.share(first + place, rank) for rank in range(self.world_size)) for place in range(self.accumulate)
        ]


class SeededBatch(list[int]):
    """The indices of a batch, and the seed of the random numbers with which its samples are read."""

    seed = 0


class SeededDataset(Dataset[Any]):
    """A data set that seeds its process before it reads a `SeededBatch`: augmentation depends on the batch alone.

    So it does not matter in which process a batch is read (a DataLoader worker, or the process itself), nor what was
    read before it. Everything else is the wrapped data set's.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> Any:
        if isinstance(indices, SeededBatch):
            seed_process(indices.seed)
        several = getattr(self.dataset, "__getitems__", None)
        return several(indices) if several else [self.dataset[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
