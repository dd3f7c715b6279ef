"""A state in two parts: everything that is no tensor, pickled, and the tensors' storages, as they lie in memory.

Tensors that share memory share it again when they are unpacked. Nothing is copied.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dtf_lightning.elastic.collectives.tensor_pickle import TensorPickler, TensorUnpickler


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """The place of one tensor: a view on a storage, or a value of its own (sparse, a subclass, on the meta device)."""

    storage: int = -1
    dtype: torch.dtype = torch.uint8
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    parameter: bool | None = None
    """The `requires_grad` of a `Parameter`; `None` for a plain tensor."""
    value: torch.Tensor | None = None

    def view(self, storages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the tensor on these storages, each of shape (bytes,)."""
        if self.value is not None:
            return self.value
        tensor = torch.empty(0, dtype=self.dtype)
        tensor.set_(storages[self.storage].untyped_storage(), self.offset, self.size, self.stride)
        return tensor if self.parameter is None else torch.nn.Parameter(tensor, requires_grad=self.parameter)


@dataclass(frozen=True)
class Packed:
    """The parts of a state that a snapshot's file holds behind its header."""

    skeleton: bytes
    storages: list[torch.Tensor]
    """The tensors' storages, each of shape (bytes,), uint8."""

    def unpack(self) -> Any:
        """Return the state, on the storages themselves. Only for what `pack` has written, because it is unpickled."""
        pickled, places = pickle.loads(self.skeleton)
        return TensorUnpickler(io.BytesIO(pickled), [place.view(self.storages) for place in places]).load()


def pack(state: Any) -> Packed:
    """Take a state apart, all of whose tensors are on the CPU. Raises what pickling the state raises."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(state)
    skeleton = pickle.dumps((file.getvalue(), pickler.places), protocol=pickle.HIGHEST_PROTOCOL)
    return Packed(skeleton, pickler.storages)


class _Pickler(TensorPickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.places: list[TensorPlace] = []
        self.storages: list[torch.Tensor] = []
        self._known: dict[int, int] = {}
        """The index of each storage, by its address."""

    def take(self, tensor: torch.Tensor) -> int:
        self.places.append(self._place(tensor))
        return len(self.places) - 1

    def _place(self, tensor: torch.Tensor) -> TensorPlace:
        kind = type(tensor)
        if kind not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or not tensor.is_cpu:
            return TensorPlace(value=tensor)
        storage = tensor.untyped_storage()
        key = storage.data_ptr() if storage.nbytes() else -1 - len(self.storages)
        if key not in self._known:
            self._known[key] = len(self.storages)
            self.storages.append(torch.empty(0, dtype=torch.uint8).set_(storage))
        return TensorPlace(
            storage=self._known[key],
            dtype=tensor.dtype,
            offset=int(tensor.storage_offset()),
            size=tuple(tensor.size()),
            stride=tuple(tensor.stride()),
            parameter=tensor.requires_grad if kind is torch.nn.Parameter else None,
        )
