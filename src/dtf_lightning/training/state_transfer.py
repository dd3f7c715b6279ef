"""A checkpoint dictionary from one rank to another, point to point on the generation's process group.

The dictionary's tensors are taken out and replaced by placeholders; the rest is pickled. Large tensors travel as they
are, without a copy; small ones of one dtype travel together. Only members of one run, which train one model together,
talk to each other here, so that unpickling is as safe as the process group itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 8 << 20
"""Small tensors are gathered into buckets of this size."""
ALONE_BYTES = 1 << 20
"""A tensor from this size on travels alone, without being copied into a bucket."""


@dataclass(frozen=True, slots=True)
class _Placeholder:
    index: int


def send_state(state: dict[str, Any], destination: int) -> int:
    """Send a checkpoint dictionary; returns the number of bytes. Raises torch's errors when the peer is gone."""
    tensors: list[torch.Tensor] = []
    skeleton = _take_tensors_out(state, tensors)
    layout = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    header = torch.frombuffer(bytearray(pickle.dumps((skeleton, layout))), dtype=torch.uint8)
    dist.send(torch.tensor([header.numel()]), destination)
    dist.send(header, destination)
    total = header.numel()
    for indices in _parcels(layout):
        # (sum of numel,)
        flat = (
            _on_wire(tensors[indices[0]])
            if len(indices) == 1
            else torch.cat([_on_wire(tensors[index]) for index in indices])
        )
        dist.send(flat, destination)
        total += flat.numel() * flat.element_size()
    return total


def receive_state(source: int) -> dict[str, Any]:
    """Receive what `send_state` sends; all tensors on the CPU."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, source)
    header = torch.empty(int(size.item()), dtype=torch.uint8)
    dist.recv(header, source)
    skeleton, layout = pickle.loads(header.numpy().tobytes())
    tensors: list[torch.Tensor] = [torch.empty(shape, dtype=dtype) for dtype, shape in layout]
    for indices in _parcels(layout):
        if len(indices) == 1:
            dist.recv(tensors[indices[0]].view(-1), source)
            continue
        sizes = [tensors[index].numel() for index in indices]
        flat = torch.empty(sum(sizes), dtype=layout[indices[0]][0])
        dist.recv(flat, source)
        for index, piece in zip(indices, torch.split(flat, sizes), strict=True):
            tensors[index] = piece.view(layout[index][1])
    state: dict[str, Any] = _put_tensors_back(skeleton, tensors)
    return state


def _on_wire(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).cpu()


def _parcels(layout: list[tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[list[int]]:
    """Groups of tensor indices that travel together: big ones alone, small neighbours of one dtype in buckets."""
    bucket: list[int] = []
    filled = 0
    for index, (dtype, shape) in enumerate(layout):
        size = torch.Size(shape).numel() * dtype.itemsize
        if size == 0:
            continue
        if bucket and (layout[bucket[0]][0] != dtype or filled + size > BUCKET_BYTES or size >= ALONE_BYTES):
            yield bucket
            bucket, filled = [], 0
        if size >= ALONE_BYTES:
            yield [index]
        else:
            bucket.append(index)
            filled += size
    if bucket:
        yield bucket


def _take_tensors_out(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Placeholder(len(tensors) - 1)
    if type(value) in (list, tuple):
        return type(value)(_take_tensors_out(item, tensors) for item in value)
    if isinstance(value, dict):
        copy = value.__class__() if type(value) is not dict else {}
        for key, item in value.items():
            copy[key] = _take_tensors_out(item, tensors)
        return copy
    return value


def _put_tensors_back(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, _Placeholder):
        return tensors[value.index]
    if type(value) in (list, tuple):
        return type(value)(_put_tensors_back(item, tensors) for item in value)
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _put_tensors_back(value[key], tensors)
    return value
