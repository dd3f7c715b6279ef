"""Any change of a tensor's bytes changes its hash; how it lies in memory does not."""

from __future__ import annotations

import pytest
import torch

from dtf_lightning.elastic.numerics.tensor_hash import SMALL, hash_tensors

SIZES = [0, 1, 3, 129, 5000, SMALL // 4 - 1, SMALL // 4, SMALL // 4 + 1, SMALL + 77]
"""Numbers of float32, on both sides of the size from which on another method is used."""


def one(tensor: torch.Tensor) -> int:
    (value,) = hash_tensors([tensor])
    return value


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool, torch.int64, torch.complex64]
)
@pytest.mark.parametrize("size", [300, SMALL + 300])
def test_every_element_counts(dtype: torch.dtype, size: int) -> None:
    values = (torch.arange(size) % 2).to(dtype)
    before = one(values)
    for index in (*range(150), *range(size - 150, size)):
        changed = values.clone()
        changed[index] = (index + 1) % 2
        assert one(changed) != before, index


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_does_not_count(size: int) -> None:
    """A view at an odd place, and one with gaps, hash as their copies do."""
    values = torch.randn(size)
    odd = torch.empty(size + 1)[1:].copy_(values)
    gaps = torch.empty(size, 2)[:, 0].copy_(values)
    assert one(values) == one(odd) == one(gaps)


def test_places_count() -> None:
    """Rows of 512 bytes that change places, the smallest change that a plain sum would not see."""
    rows = torch.randn(200, 128)
    swapped = rows.clone()
    swapped[[0, 1]] = rows[[1, 0]]
    assert one(rows) != one(swapped)


def test_zeros_differ_by_a_bit_only() -> None:
    assert one(torch.tensor([0.0])) != one(torch.tensor([-0.0]))


def test_many_at_once() -> None:
    tensors = [torch.randn(size) for size in SIZES]
    assert hash_tensors(tensors) == [one(tensor) for tensor in tensors]
    assert hash_tensors([]) == []
