"""Sends a training state from one rank to another, point to point on the generation's process group.

A state travels as a `Parcel` of named parts. Each part is pickled when it is added, without its tensors, so that what
cannot be sent is known before anybody is asked to receive it. Tensors stay where they are until they are sent; one that
occurs twice, or twice on the same memory, travels once. Large tensors travel as they are, without a copy; small ones of
one dtype travel together. Only members of one run, which train one model together, talk to each other here, so that
unpickling is as safe as the process group itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives.tensor_pickle import TensorPickler, TensorUnpickler

BUCKET_BYTES = 8 << 20
"""The size in bytes of the buckets into which small tensors are gathered."""
ALONE_BYTES = 1 << 20
"""The size in bytes from which on a tensor travels alone, without being copied into a bucket."""

PARCEL_TIMEOUT = timedelta(minutes=30)
"""The wait for one parcel. It ends earlier when a peer freezes or dies: the agents notice that and cut the group."""


class Parcel:
    """A state that is ready to be sent: named parts, pickled, and references to their tensors."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        """Each part's pickle, in which tensors are numbers."""
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        """Number of each tensor, by the memory that it lies on and how."""

    def add(self, name: str, value: Any) -> None:
        """Add a part. Raises what pickling it raises; the parcel is then as before."""
        file, num_before = io.BytesIO(), len(self.tensors)
        try:
            _Pickler(file, self).dump(value)
        except BaseException:
            del self.tensors[num_before:]
            self._numbers = {key: number for key, number in self._numbers.items() if number < num_before}
            raise
        self.parts[name] = file.getvalue()

    def number_of(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor of the parcel, which is added if it is not there yet."""
        if tensor.numel():
            where: tuple[Any, ...] = (tensor.data_ptr(), tuple(tensor.stride()))
        else:
            where = (id(tensor),)
        key = (tensor.device, tensor.dtype, tuple(tensor.shape), *where)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(tensor)
        return self._numbers[key]


class _Pickler(TensorPickler):
    def __init__(self, file: io.BytesIO, parcel: Parcel) -> None:
        super().__init__(file)
        self._parcel = parcel

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, torch.Tensor) and obj.layout is not torch.strided:
            return None  # sparse: pickled as torch does it
        return super().persistent_id(obj)

    def take(self, tensor: torch.Tensor) -> int:
        return self._parcel.number_of(tensor)


def send_parcel(parcel: Parcel, destination: int) -> int:
    """Send a parcel; return the number of bytes. Raises torch's errors when the peer is gone."""
    tensors = parcel.tensors
    layout = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    header = torch.frombuffer(bytearray(pickle.dumps((parcel.parts, layout))), dtype=torch.uint8)
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


def receive_parcel(source: int) -> dict[str, Any]:
    """Receive what `send_parcel` sends: the parts by name, with all tensors on the CPU.

    No part shares memory with another one. Raises torch's errors when the peer is gone.
    """
    size = torch.zeros(1, dtype=torch.int64)
    _receive(size, source)
    header = torch.empty(int(size.item()), dtype=torch.uint8)
    _receive(header, source)
    parts, layout = pickle.loads(header.numpy().tobytes())
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
    given: set[int] = set()
    return {name: _Unpickler(pickled, tensors, given).state() for name, pickled in parts.items()}


class _Unpickler(TensorUnpickler):
    """Unpickles one part; a tensor that an earlier part was `given` is copied."""

    def __init__(self, pickled: bytes, tensors: list[torch.Tensor], given: set[int]) -> None:
        super().__init__(io.BytesIO(pickled), tensors)
        self._given = given
        self._mine: dict[int, torch.Tensor] = {}

    def state(self) -> Any:
        state = self.load()
        self._given.update(self._mine)
        return state

    def persistent_load(self, pid: int) -> torch.Tensor:
        if pid not in self._mine:
            tensor = super().persistent_load(pid)
            self._mine[pid] = tensor.clone() if pid in self._given else tensor
        return self._mine[pid]


def send_state(state: dict[str, Any], destination: int) -> int:
    """Send a dictionary; return the number of bytes. Raises what pickling raises, and torch's errors."""
    parcel = Parcel()
    parcel.add("state", state)
    return send_parcel(parcel, destination)


def receive_state(source: int) -> dict[str, Any]:
    """Receive what `send_state` sends, with all tensors on the CPU. Raises torch's errors when the peer is gone."""
    state: dict[str, Any] = receive_parcel(source)["state"]
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
