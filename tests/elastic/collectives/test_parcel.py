"""What a parcel holds before it is sent."""

from __future__ import annotations

import threading

import pytest
import torch

from dtf_lightning.elastic.collectives.state_transfer import Parcel


def test_a_tensor_travels_once() -> None:
    """In several parts, twice in one, or another view of the same memory, as `state_dict` makes them."""
    weight = torch.nn.Parameter(torch.randn(3, 4))
    parcel = Parcel()
    parcel.add("module", {"weight": weight.detach(), "tied": weight})
    parcel.add("checkpoint", {"state_dict": {"weight": weight.detach()}, "average": weight.detach().clone()})
    assert len(parcel.tensors) == 2


@pytest.mark.parametrize("other", [torch.arange(12.0).view(4, 3), torch.arange(12.0).view(3, 4).T, torch.empty(0)])
def test_other_views_are_other_tensors(other: torch.Tensor) -> None:
    parcel = Parcel()
    parcel.add("a", [torch.arange(12.0).view(3, 4), other, torch.empty(0)])
    assert len(parcel.tensors) == 3


def test_what_cannot_be_packed_leaves_no_trace() -> None:
    parcel = Parcel()
    parcel.add("kept", torch.ones(2))
    with pytest.raises(TypeError, match="cannot pickle"):
        parcel.add("hook", [torch.zeros(3), threading.Lock()])
    assert list(parcel.parts) == ["kept"]
    assert len(parcel.tensors) == 1
    parcel.add("more", torch.zeros(3))
    assert len(parcel.tensors) == 2
