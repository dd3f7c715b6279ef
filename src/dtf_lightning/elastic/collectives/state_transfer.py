"""Sends a checkpoint dictionary from one rank to another, point to point on the generation's process group.

The dictionary's tensors are taken out and replaced by placeholders; the rest is pickled. Large tensors travel as they
are, without a copy; small ones of one dtype travel together. Only members of one run, which train one model together,
talk to each other here, so that unpickling is as safe as the process group itself.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 8 << 20
"""The size in bytes of the buckets into which small tensors are gathered."""
ALONE_BYTES = 1 << 20
"""The size in bytes from which on a tensor travels alone, without being copied into a bucket."""

PARCEL_TIMEOUT = timedelta(minutes=30)
"""The wait for one parcel. It ends earlier when a peer freezes or dies: the agents notice that and cut the group."""


@dataclass(frozen=True, slots=True)
class _Placeholder:
    index: int


def send_state(state: dict[str, Any], destination: int) -> int:
    """Send a checkpoint dictionary; return the number of bytes. Raises torch's errors when the peer is gone."""
    tensors: list[torch.Tensor] = []
    skeleton = _take_tensors_out(state, tensors)
    layout = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    header = torch.frombuffer(bytearray(pickle.dumps((skeleton, layout))), dtype=torch.uint8)
    _send(torch.tensor([header.numel()]), destination)
    _send(header, destination)
    total = header.numel()
    for indices in _parcels(layout):
        # (sum of numel,)
        flat = (
            _on_wire(tensors[indices[0]])
            if len(indices) == 1
            else torch.cat([_on_wire(tensors[index]) for index in indices])
        )
        _send(flat, destination)
        total += flat.numel() * flat.element_size()
    return total


def receive_state(source: int) -> dict[str, Any]:
    """Receive what `send_state` sends, with all tensors on the CPU. Raises torch's errors when the peer is gone."""
    size = torch.zeros(1, dtype=torch.int64)
    _receive(size, source)
    header = torch.empty(int(size.item()), dtype=torch.uint8)
    _receive(header, source)
    skeleton, layout = pickle.loads(header.numpy().tobytes())
    tensors: list[torch.Tensor] = [torch.empty(shape, dtype=dtype) for dtype, shape in layout]
    for indices in _parcels(layout):
        if len(indices) == 1:
            _receive(tensors[indices[0]].view(-1), source)
            continue
        sizes = [tensors[index].numel() for index in indices]
        flat = torch.empty(sum(sizes), dtype=layout[indices[0]][0])
        _receive(flat, source)
        for index, piece in zip(indices, torch.split(flat, sizes), strict=True):
            tensors[index] = piece.view(layout[index][1])
    state: dict[str, Any] = _put_tensors_back(skeleton, tensors)
    return state


def _send(tensor: torch.Tensor, destination: int) -> None:
    work = dist.isend(tensor, destination)
    assert work is not None  # None: this rank is not in the group
    work.wait(PARCEL_TIMEOUT)


def _receive(tensor: torch.Tensor, source: int) -> None:
    # Not `dist.recv`, whose timeout is the one of the group's forming (see `GenerationGroup.form`).
    work = dist.irecv(tensor, source)
    assert work is not None
    work.wait(PARCEL_TIMEOUT)


def _on_wire(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).cpu()


def _parcels(layout: list[tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[list[int]]:
    """Yield indices of tensors that travel together: a large one alone, small neighbours of one dtype in a bucket."""
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
        # A shallow copy keeps the class and what else it holds: a state_dict's `_metadata`, a default factory.
        taken = copy.copy(value)
        for key, item in value.items():
            taken[key] = _take_tensors_out(item, tensors)
        return taken
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
