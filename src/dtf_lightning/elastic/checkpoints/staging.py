"""Copies a checkpoint dictionary so that training can no longer change it, into buffers that are used again.

Copying into memory that was touched before is several times faster than allocating. What only an optimizer step changes
(weights, moments) need not be copied at once: the copy may run beside the next forward and backward pass, if the
optimizer step waits for it (CheckFreq, Mohan et al., FAST 2021). A torn copy is never passed on: when all is copied, it
is compared with the source once more, so that a change of a weight meanwhile (a clamp in a hook, a rescale) is found.
(torch counts changes in place, but not those through `.data`, so the bytes are compared as well. It counts a change when
the operation is over: a reader on another thread looks once the training thread has left the operation it was in.)

Whatever can be pickled can be staged; tensors that share memory still share it in the copy.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any

import torch

from dtf_lightning.elastic.collectives.tensor_pickle import TensorPickler, TensorUnpickler
from dtf_lightning.errors import CheckpointError

_PLAIN = (torch.Tensor, torch.nn.Parameter)

SMALL = 1 << 16
"""Size in bytes; a smaller storage is copied at once."""
LOOK_SECONDS = 0.001
"""Between two looks at where the training thread is; it does something else all the time."""
PATIENCE = 10.0
"""Seconds after which a thread that stays where it is counts as one that changes nothing."""


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> list[Any]:
    """Return the parameters that the optimizers step, and the values of their state."""
    found: list[Any] = []
    for optimizer in optimizers:
        found += [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found += [value for state in optimizer.state.values() for value in state.values()]
    return found


def storages_of(tensors: Iterable[Any]) -> set[int]:
    """Return the addresses of the storages of plain tensors, for `Staging.begin(steady=...)`; skips other values."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if type(tensor) in _PLAIN}


class StateChanged(CheckpointError):
    """Raised when something other than an optimizer step changed the state during the copying: it is useless then."""


class StagedState:
    """A copy that may not be finished yet, in the buffers of the `Staging` that made it. Made by the training thread."""

    def __init__(self, state: Any, copier: _Copier) -> None:
        self._state = state
        self._copier: _Copier | None = copier
        self._lock = threading.Lock()
        self._torn = False
        self._training = threading.current_thread()
        self._waited = threading.Event()

    def wait(self) -> None:
        """Return when the source may change; for the training thread, before the next optimizer step.

        The thread that comes first, here or in `read`, does the copying. Never waits for a device.
        """
        with self._lock:
            if self._copier is not None:
                self._torn |= not (self._copier.copy_rest() and self._copier.nothing_changed())
        self._waited.set()

    def read(self) -> Any:
        """Return the finished copy. Raises `StateChanged` if it is not that of one moment.

        On another thread than the training thread, which must not wait for this one without having called `wait`.
        """
        with self._lock:
            copied_here = self._copier is not None and self._copier.is_open
            if self._copier is not None:
                self._torn |= not self._copier.copy_rest()
        if copied_here and threading.current_thread() is not self._training:
            self._let_operation_end()
        with self._lock:
            copier, self._copier = self._copier, None
            if copier is not None:
                self._torn |= not copier.nothing_changed()
                copier.arrive()
        if self._torn:
            raise StateChanged(
                "weights were changed between two optimizer steps, while they were copied for an asynchronous save"
            )
        return self._state

    def _let_operation_end(self) -> None:
        """Return when the operation that the training thread is in, if it is in one, is over: it has been counted then."""
        place, end = _place_of(self._training), time.monotonic() + PATIENCE
        while not self._waited.wait(LOOK_SECONDS):
            if place is None or _place_of(self._training) != place or time.monotonic() >= end:
                return


class Staging:
    """The buffers for one copy at a time."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    @property
    def num_bytes(self) -> int:
        """The bytes of host memory that the buffers hold."""
        return sum(buffer.numel() for buffer in self._buffers)

    def copy(self, state: Any) -> Any:
        """Return the state on the CPU, valid until the next call. Raises what pickling the state raises."""
        return self.begin(state).read()

    def begin(self, state: Any, *, steady: Collection[int] = ()) -> StagedState:
        """Begin to copy the state; valid until the next call.

        `steady` holds the addresses of the storages that nothing changes before `StagedState.wait` is called. On CUDA
        all copies are ordered before whatever the current stream does next, so that only the reader waits for them.

        Raises what pickling the state raises.
        """
        copier = _Copier(self._buffers, steady)
        skeleton = io.BytesIO()
        pickler = _Pickler(skeleton, copier)
        pickler.dump(state)
        copier.all_known()
        del self._buffers[copier.num_used :]
        unpickler = TensorUnpickler(io.BytesIO(skeleton.getbuffer()), copier.tensors)
        return StagedState(unpickler.load(), copier)


class _Copier:
    """Copies tensors into the buffers, in the order in which they come; each storage once."""

    def __init__(self, buffers: list[torch.Tensor], steady: Collection[int]) -> None:
        self._buffers = buffers
        self._steady = steady
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._sources: list[Any] = []
        """The source storages, kept until all is copied so that no address is used again meanwhile."""
        self._later: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Pairs of buffer and source that are copied later, both (nbytes,) uint8."""
        self._versions: list[tuple[torch.Tensor, int]] = []
        """The tensors that are copied later, and how often each had been changed in place when the copy began."""
        self._on_device = False
        self._arrived: torch.cuda.Event | None = None
        self.num_used = 0
        self.tensors: list[torch.Tensor] = []

    @property
    def is_open(self) -> bool:
        """Whether nobody has looked yet if the sources were changed."""
        return bool(self._versions)

    def take(self, tensor: torch.Tensor) -> int:
        self.tensors.append(self._copy(tensor))
        return len(self.tensors) - 1

    def all_known(self) -> None:
        """Note that every tensor was taken, and that what the device copies is on its way."""
        if self._on_device:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def copy_rest(self) -> bool:
        """Copy what was left for later; return whether the sources have the same bytes still. Idempotent."""
        for buffer, source in self._later:
            buffer.copy_(source)
        same = all(_same_bytes(buffer, source) for buffer, source in self._later)
        self._later.clear()
        return same

    def nothing_changed(self) -> bool:
        """Return whether no operation has changed a source since the copy began, as far as torch counts. Idempotent."""
        same = all(tensor._version == version for tensor, version in self._versions)
        self._versions.clear()
        return same

    def arrive(self) -> None:
        """Wait until the device has copied its part."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._sources.clear()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor_type = type(tensor)
        plain = tensor_type in _PLAIN and tensor.layout is torch.strided
        if not plain or tensor.device.type not in ("cpu", "cuda") or tensor.is_conj() or tensor.is_neg():
            return tensor.detach().clone().cpu() if tensor.device.type != "meta" else tensor.detach()
        storage = self._stage(tensor)
        copied = torch.empty(0, dtype=tensor.dtype)
        copied.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        if tensor_type is torch.nn.Parameter:
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied

    def _stage(self, tensor: torch.Tensor) -> torch.UntypedStorage:
        source = tensor.untyped_storage()
        key = source.data_ptr() if source.nbytes() else -1 - len(self._sources)
        if key in self._storages:
            return self._storages[key]
        self._sources.append(source)
        buffer = self._buffer(source.nbytes(), pinned=source.device.type == "cuda")
        # (nbytes,): the whole storage as bytes
        flat = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
        steady = source.data_ptr() in self._steady and source.nbytes() >= SMALL and not tensor.is_inference()
        if steady and source.device.type == "cpu":
            self._later.append((buffer, flat))
            self._versions.append((tensor, tensor._version))
        else:
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


def _place_of(thread: threading.Thread) -> tuple[int, int] | None:
    """The instruction that the thread executes; `None` when it has ended. Holds no frame: it would keep tensors alive."""
    frame = sys._current_frames().get(thread.ident or 0) if thread.is_alive() else None
    return None if frame is None else (id(frame), frame.f_lasti)


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two (nbytes,) uint8 tensors are equal; comparing eight bytes at a time is five times as fast."""
    words = one.numel() // 8 * 8
    same_words = torch.equal(one[:words].view(torch.int64), other[:words].view(torch.int64))
    return same_words and torch.equal(one[words:], other[words:])


class _Pickler(TensorPickler):
    def __init__(self, file: io.BytesIO, copier: _Copier) -> None:
        super().__init__(file)
        self._copier = copier

    def take(self, tensor: torch.Tensor) -> int:
        return self._copier.take(tensor)
