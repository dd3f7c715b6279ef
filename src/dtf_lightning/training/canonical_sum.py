"""Gradients of logical ranks, added over all workers in one order: the same bits in any world.

Each logical rank's gradients are copied into flat vectors, one per dtype. A worker adds the vectors of whole subtrees
(`training/virtual_ranks.py`), sends each other worker that one's chunk of every sum, adds its own chunk of all workers'
sums along the tree, and gathers the chunks. Where a worker's block is one subtree (2, 4 or 8 workers of 8 logical ranks)
it sends and receives what a ring all-reduce does: twice the gradients. Every element is added by itself, so that it does
not matter where chunks begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dtf_lightning.errors import SettingsError
from dtf_lightning.training.virtual_ranks import TreeSum, total, whole_subtrees

Vectors = list[torch.Tensor]
"""One flat vector per dtype; the layout says where each tensor lies in them."""


class FlatLayout:
    """Where tensors lie in flat vectors.

    Args:
        like: tensors of the shapes, dtypes and device that are to be added.
        world_size: vectors are padded to a multiple of it.
    """

    def __init__(self, like: Sequence[torch.Tensor], world_size: int) -> None:
        self._places: list[tuple[int, int, torch.Size]] = []
        dtypes: list[torch.dtype] = []
        lengths: list[int] = []
        self._device = like[0].device
        for tensor in like:
            if tensor.dtype not in dtypes:
                dtypes.append(tensor.dtype)
                lengths.append(0)
            vector = dtypes.index(tensor.dtype)
            self._places.append((vector, lengths[vector], tensor.shape))
            lengths[vector] += tensor.numel()
        self._kinds = [
            (-(-length // world_size) * world_size, dtype) for length, dtype in zip(lengths, dtypes, strict=True)
        ]
        self._free: list[Vectors] = []

    def take(self) -> Vectors:
        """Vectors to write into; what they hold is of no meaning, except that the padding is finite."""
        if self._free:
            return self._free.pop()
        return [torch.zeros(length, dtype=dtype, device=self._device) for length, dtype in self._kinds]

    def give_back(self, vectors: Vectors) -> None:
        """These are not needed any more."""
        self._free.append(vectors)

    def views(self, vectors: Vectors) -> list[torch.Tensor]:
        """The tensors, as views."""
        return [vectors[v][start : start + shape.numel()].view(shape) for v, start, shape in self._places]


def add(one: Vectors, other: Vectors) -> None:
    """To the first, in place."""
    for mine, theirs in zip(one, other, strict=True):
        mine.add_(theirs)


def _add_chunk(one: torch.Tensor, other: torch.Tensor) -> None:
    one.add_(other)


@torch.no_grad()
def write(views: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor | None]) -> None:
    """Copy; zeros for what is not there. Raises `SettingsError` for sparse gradients."""
    pairs = [(view, tensor) for view, tensor in zip(views, tensors, strict=True) if tensor is not None]
    if any(tensor.layout is not torch.strided for _, tensor in pairs):
        raise SettingsError(
            "virtual_ranks needs dense gradients, which it adds in one order; got a sparse one. Use "
            "torch.nn.Embedding(sparse=False)."
        )
    if pairs:
        torch._foreach_copy_([view for view, _ in pairs], [tensor for _, tensor in pairs])
    for view, tensor in zip(views, tensors, strict=True):
        if tensor is None:
            view.zero_()


@torch.no_grad()
def sum_over_workers(mine: TreeSum, *, num_logical: int, blocks: Sequence[range], layout: FlatLayout) -> Vectors:
    """The sum over all logical ranks. A collective of the workers whose logical ranks `blocks` are, by rank.

    The vectors of `mine` are used up. Raises torch's errors when a peer is gone.
    """
    if len(blocks) == 1:
        return total(dict(zip(mine.nodes, mine.sums, strict=True)), num_logical, add)
    nodes = [whole_subtrees(leaves) for leaves in blocks]
    result = layout.take()
    for vector, whole in enumerate(result):
        _sum_vector([sums[vector] for sums in mine.sums], whole, nodes, num_logical)
    for sums in mine.sums:
        layout.give_back(sums)
    return result


def _sum_vector(sums: list[torch.Tensor], result: torch.Tensor, nodes: list[list[Any]], num_logical: int) -> None:
    world_size = len(nodes)
    chunk = result.numel() // world_size
    # (world_size, number of my sums, chunk): what each worker gets from me
    sent = sums[0] if len(sums) == 1 else torch.stack([one.view(world_size, chunk) for one in sums], dim=1).flatten()
    # (number of all sums, chunk): my chunk of them, by rank
    received = result.new_empty(sum(map(len, nodes)), chunk)
    dist.all_to_all_single(
        received.view(-1),
        sent,
        output_split_sizes=[len(theirs) * chunk for theirs in nodes],
        input_split_sizes=[len(sums) * chunk] * world_size,
    )
    parts = dict(zip([node for theirs in nodes for node in theirs], received.unbind(), strict=True))
    dist.all_gather_into_tensor(result, total(parts, num_logical, _add_chunk))
