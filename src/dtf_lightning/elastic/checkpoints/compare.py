"""Finds the tensors in which two checkpoints differ, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same in both checkpoints."""

    name: str
    what: str
    """What differs: `only in A`, `only in B`, another shape or dtype, or `values`."""
    largest: float = 0.0
    """The largest absolute difference of an element; NaN if one side has a NaN where the other has none."""
    relative: float = 0.0
    """The norm of the difference over the norm of the tensor in A."""
    num_differing: int = 0
    """The number of elements that differ."""
    num_elements: int = 0


def compare(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> list[Difference]:
    """Return the differences, by tensor name. Equal NaNs are equal."""
    found = []
    for name in sorted(a.keys() | b.keys()):
        if name not in b:
            found.append(Difference(name, "only in A"))
        elif name not in a:
            found.append(Difference(name, "only in B"))
        else:
            difference = _compare(name, a[name], b[name])
            if difference is not None:
                found.append(difference)
    return found


def _compare(name: str, a: torch.Tensor, b: torch.Tensor) -> Difference | None:
    if a.shape != b.shape:
        return Difference(name, f"shape {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype:
        return Difference(name, f"dtype {a.dtype} and {b.dtype}")
    if a.numel() == 0 or torch.equal(a, b):
        return None
    wide = torch.complex128 if a.is_complex() else torch.float64
    left, right = a.to(wide), b.to(wide)
    same = (left == right) | (left.isnan() & right.isnan())
    if bool(same.all()):
        return None
    delta = torch.where(same, torch.zeros_like(left), left - right)
    norm = float(torch.linalg.vector_norm(left.nan_to_num()))
    return Difference(
        name,
        "values",
        largest=float(delta.abs().max()),
        relative=float(torch.linalg.vector_norm(delta)) / norm if norm else float("inf"),
        num_differing=int((~same).sum()),
        num_elements=a.numel(),
    )
