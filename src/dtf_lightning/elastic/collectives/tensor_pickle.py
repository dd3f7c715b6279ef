"""Pickles whose tensors are kept apart: in the pickle each tensor is a number, the same one wherever it occurs."""

from __future__ import annotations

import io
import pickle
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch


class TensorPickler(pickle.Pickler):
    """A pickler that gives every tensor to `take` instead of writing it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._seen: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []
        """The tensors so far, kept so that their ids and addresses are not used again meanwhile."""

    @abstractmethod
    def take(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor that has not been seen yet, for `TensorUnpickler`; numbers count from 0."""

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._seen:
            self._kept.append(obj)
            self._seen[id(obj)] = self.take(obj)
        return self._seen[id(obj)]


class TensorUnpickler(pickle.Unpickler):
    """An unpickler that puts tensors in the places of their numbers."""

    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]
