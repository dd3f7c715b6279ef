"""A copy of a checkpoint dictionary that training cannot change any more, in buffers that are used again.

Copying into memory that was touched before is several times faster than allocating: this is what keeps the stall of an
asynchronous save small. Whatever can be pickled can be staged; tensors that share memory still share it in the copy.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


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
        copier = _Copier(self._buffers)
        skeleton = io.BytesIO()
        pickler = _Pickler(skeleton, copier)
        try:
            pickler.dump(state)
        finally:
            copier.wait()
        del self._buffers[copier.num_used :]
        unpickler = _Unpickler(io.BytesIO(skeleton.getbuffer()), copier.tensors)
        return unpickler.load()


class _Copier:
    """Copies tensors into the buffers, in the order in which they come; each storage once."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        self._buffers = buffers
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._sources: list[Any] = []
        """Kept until all is copied: an address is not used again meanwhile."""
        self._on_device = False
        self.num_used = 0
        self.tensors: list[torch.Tensor] = []

    def take(self, tensor: torch.Tensor) -> int:
        self.tensors.append(self._copy(tensor))
        return len(self.tensors) - 1

    def wait(self) -> None:
        if self._on_device:
            torch.cuda.current_stream().synchronize()
        self._sources.clear()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor_type = type(tensor)
        plain = tensor_type in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda") or tensor.is_conj() or tensor.is_neg():
            return tensor.detach().clone().cpu() if tensor.device.type != "meta" else tensor.detach()
        storage = self._stage(tensor.untyped_storage())
        copied = torch.empty(0, dtype=tensor.dtype)
        copied.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        if tensor_type is torch.nn.Parameter:
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied

    def _stage(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        key = source.data_ptr() if source.nbytes() else -1 - len(self._sources)
        if key in self._storages:
            return self._storages[key]
        self._sources.append(source)
        buffer = self._buffer(source.nbytes(), pinned=source.device.type == "cuda")
        # (nbytes,): the whole storage as bytes
        flat = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
        buffer.copy_(flat, non_blocking=True)
        self._on_device |= source.device.type == "cuda"
        self._storages[key] = buffer.untyped_storage()
        return self._storages[key]

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
