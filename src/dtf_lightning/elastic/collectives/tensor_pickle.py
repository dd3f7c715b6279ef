"""Pickles of which the tensors are kept apart: each is a number in the pickle, once, however often it occurs."""

from __future__ import annotations

import io
import pickle
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch


class TensorPickler(pickle.Pickler):
    """Gives every tensor to `take` instead of writing it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._seen: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []
        """Keeps ids and addresses from being used again meanwhile."""

    @abstractmethod
    def take(self, tensor: torch.Tensor) -> int:
        """The number of a tensor that has not been seen yet: for `TensorUnpickler`, counted from 0."""

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self._seen:
            self._kept.append(obj)
            self._seen[id(obj)] = self.take(obj)
        return self._seen[id(obj)]


class TensorUnpickler(pickle.Unpickler):
    """Puts tensors in the places of their numbers."""

    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]
