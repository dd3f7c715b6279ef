"""A copy of a checkpoint dictionary that training cannot change any more, in buffers that are used again.

Copying into memory that was touched before is several times faster than allocating: this is what keeps the stall of an
asynchronous save small. Whatever can be pickled can be staged; tensors that share memory still share it in the copy.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Defer = Callable[[torch.UntypedStorage], bool]
"""Whether a storage may be copied later, because nothing changes it before that."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of the state: a view on a storage, or a value of its own (sparse, a subclass, on the meta device)."""

    storage: int = -1
    dtype: torch.dtype = torch.uint8
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    parameter: bool | None = None
    """`requires_grad` of a `Parameter`; `None` for a plain tensor."""
    value: torch.Tensor | None = None

    def view(self, storages: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor on these storages, each of shape (bytes,)."""
        if self.value is not None:
            return self.value
        tensor = torch.empty(0, dtype=self.dtype)
        tensor.set_(storages[self.storage].untyped_storage(), self.offset, self.size, self.stride)
        return tensor if self.parameter is None else torch.nn.Parameter(tensor, requires_grad=self.parameter)


@dataclass
class Staged:
    """A state in two parts: everything that is no tensor, pickled, and the tensors' storages on the CPU."""

    skeleton: bytes
    places: list[TensorPlace]
    storages: list[torch.Tensor]
    """Each of shape (bytes,), uint8."""
    pending: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(buffer, source) of the storages that `finish` has still to copy."""
    ready: Any = None
    """On CUDA: what the training stream has to have done before `pending` may be read."""

    def finish(self) -> None:
        """Copy what was put off; from any thread. On CUDA on a stream of its own, beside the training's."""
        device = next((source.device for _, source in self.pending if source.is_cuda), None)
        if device is None:
            for buffer, source in self.pending:
                buffer.copy_(source)
        else:
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):
                side.wait_event(self.ready)
                for buffer, source in self.pending:
                    buffer.copy_(source, non_blocking=True)
            side.synchronize()
        self.pending = []

    def load(self) -> Any:
        """The state, on the buffers themselves."""
        tensors = [place.view(self.storages) for place in self.places]
        return _Unpickler(io.BytesIO(self.skeleton), tensors).load()


class Staging:
    """Buffers for one copy at a time."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Host memory held by the buffers."""
        return sum(buffer.numel() for buffer in self._buffers)

    def copy(self, state: Any) -> Any:
        """The state on the CPU, valid until the next call. Raises what pickling the state raises."""
        return self.stage(state).load()

    def stage(self, state: Any, defer: Defer = lambda _: False) -> Staged:
        """As `copy`, but in its parts; storages for which `defer` is true are copied by `Staged.finish` only."""
        copier = _Copier(self._buffers, defer)
        skeleton = io.BytesIO()
        try:
            _Pickler(skeleton, copier).dump(state)
        finally:
            copier.wait()
        del self._buffers[copier.num_used :]
        ready = torch.cuda.current_stream().record_event() if any(s.is_cuda for _, s in copier.pending) else None
        return Staged(skeleton.getvalue(), copier.places, list(self._buffers), copier.pending, ready)


class _Copier:
    """Copies tensors into the buffers, in the order in which they come; each storage once."""

    def __init__(self, buffers: list[torch.Tensor], defer: Defer) -> None:
        self._buffers = buffers
        self._defer = defer
        self._storages: dict[int, int] = {}
        self._sources: list[Any] = []
        """Kept until all is copied: an address is not used again meanwhile."""
        self._on_device = False
        self.num_used = 0
        self.places: list[TensorPlace] = []
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take(self, tensor: torch.Tensor) -> int:
        self.places.append(self._place(tensor))
        return len(self.places) - 1

    def wait(self) -> None:
        if self._on_device:
            torch.cuda.current_stream().synchronize()
        self._sources.clear()

    def _place(self, tensor: torch.Tensor) -> TensorPlace:
        tensor_type = type(tensor)
        plain = tensor_type in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda") or tensor.is_conj() or tensor.is_neg():
            value = tensor.detach().clone().cpu() if tensor.device.type != "meta" else tensor.detach()
            return TensorPlace(value=value)
        return TensorPlace(
            storage=self._stage(tensor.untyped_storage()),
            dtype=tensor.dtype,
            offset=int(tensor.storage_offset()),
            size=tuple(tensor.size()),
            stride=tuple(tensor.stride()),
            parameter=tensor.requires_grad if tensor_type is torch.nn.Parameter else None,
        )

    def _stage(self, source: torch.UntypedStorage) -> int:
        key = source.data_ptr() if source.nbytes() else -1 - len(self._sources)
        if key in self._storages:
            return self._storages[key]
        self._sources.append(source)
        index, on_device = self.num_used, source.device.type == "cuda"
        buffer = self._buffer(source.nbytes(), pinned=on_device)
        # (nbytes,): the whole storage as bytes
        flat = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
        if self._defer(source):
            self.pending.append((buffer, flat))
        else:
            buffer.copy_(flat, non_blocking=True)
            self._on_device |= on_device
        self._storages[key] = index
        return index

    def _buffer(self, size: int, *, pinned: bool) -> torch.Tensor:
        index, self.num_used = self.num_used, self.num_used + 1
        if index < len(self._buffers):
            if self._buffers[index].numel() == size:
                return self._buffers[index]
            del self._buffers[index:]
        self._buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
        return self._buffers[index]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, copier: _Copier) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._copier = copier
        self._seen: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._seen:
            self._kept.append(obj)
            self._seen[id(obj)] = self._copier.take(obj)
        return self._seen[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]
