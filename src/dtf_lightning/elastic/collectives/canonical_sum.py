"""Adds the gradients of logical ranks over all workers in one fixed order: the sum has the same bits in any world.

A worker adds the gradients of whole subtrees (`elastic/data/virtual_plan.py`) as they come. Each of these sums is then
copied into flat vectors, one per dtype. Every worker sends each other worker the chunk of its sums that is the other's
to add, adds its own chunk of all workers' sums along the tree, and the chunks are gathered. Where a worker's block is
one subtree (2, 4 or 8 workers of 8 logical ranks), a worker sends and receives as much as in a ring all-reduce: twice
the gradients. Every element is added by itself, so that it does not matter where chunks begin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from dtf_lightning.elastic.data.virtual_plan import Node, TreeSum, total, whole_subtrees

Tensors = list[torch.Tensor]
"""What is added: gradients, or the moves of buffers."""


def add(one: Tensors, other: Tensors) -> None:
    """Add `other` to `one`, in place."""
    torch._foreach_add_(one, other)


class FlatLayout:
    """The places of tensors in flat vectors, which are kept for the next step.

    Args:
        like: tensors of the shapes and dtypes, and on the device, that are to be added.
        world_size: each vector's length is padded to a multiple of it.
    """

    def __init__(self, like: Sequence[torch.Tensor], world_size: int) -> None:
        self._places: list[tuple[int, int, torch.Size]] = []
        self._device = like[0].device
        self.world_size = world_size
        lengths: dict[torch.dtype, int] = {}
        for tensor in like:
            start = lengths.setdefault(tensor.dtype, 0)
            self._places.append((list(lengths).index(tensor.dtype), start, tensor.shape))
            lengths[tensor.dtype] += tensor.numel()
        self._kinds = [(-(-length // world_size) * world_size, dtype) for dtype, length in lengths.items()]
        self._vectors: list[list[torch.Tensor]] = []

    def vectors(self, number: int) -> list[torch.Tensor]:
        """Return the `number`-th set of vectors, one per dtype."""
        while number >= len(self._vectors):
            self._vectors.append([torch.zeros(size, dtype=kind, device=self._device) for size, kind in self._kinds])
        return self._vectors[number]

    def views(self, vectors: list[torch.Tensor]) -> Tensors:
        """Return the tensors that lie in `vectors`, as views."""
        return [vectors[v][start : start + shape.numel()].view(shape) for v, start, shape in self._places]


@torch.no_grad()
def sum_over_workers(mine: TreeSum, *, num_logical: int, blocks: Sequence[range], layout: FlatLayout) -> Tensors:
    """Return the sum over all logical ranks; a collective.

    `blocks` are the workers' logical ranks, in the order of the workers' ranks.

    The sums in `mine` are used up; the result is good until the next sum with this layout. Raises torch's errors when a
    peer is gone.
    """
    if len(blocks) == 1:
        alone: Tensors = total(dict(zip(mine.nodes, mine.sums, strict=True)), num_logical, add)
        return alone
    nodes = [whole_subtrees(leaves) for leaves in blocks]
    result = layout.vectors(0)
    sums = [layout.vectors(1 + number) for number in range(len(mine.sums))]
    for vectors, tensors in zip(sums, mine.sums, strict=True):
        torch._foreach_copy_(layout.views(vectors), tensors)
    for vector, whole in enumerate(result):
        _sum_vector([vectors[vector] for vectors in sums], whole, nodes, num_logical)
    return layout.views(result)


def _sum_vector(sums: Tensors, result: torch.Tensor, nodes: list[list[Node]], num_logical: int) -> None:
    world_size = len(nodes)
    chunk = result.numel() // world_size
    # (world_size, number of my sums, chunk): what each worker gets from this one
    sent = sums[0] if len(sums) == 1 else torch.stack([one.view(world_size, chunk) for one in sums], dim=1).flatten()
    # (number of all sums, chunk): this worker's chunk of them, by rank
    received = result.new_empty(sum(map(len, nodes)), chunk)
    dist.all_to_all_single(
        received.view(-1),
        sent,
        output_split_sizes=[len(theirs) * chunk for theirs in nodes],
        input_split_sizes=[len(sums) * chunk] * world_size,
    )
    parts = dict(zip([node for theirs in nodes for node in theirs], received.unbind(), strict=True))
    dist.all_gather_into_tensor(result, total(parts, num_logical, _add_chunk))


def _add_chunk(one: torch.Tensor, other: torch.Tensor) -> None:
    one.add_(other)
