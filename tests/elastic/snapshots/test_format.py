"""A snapshot's file: what goes in comes out, and not a byte less or other."""

from __future__ import annotations

import pytest
import torch

from dtf_lightning.elastic.rules.resume import LoopPhase, Position
from dtf_lightning.elastic.snapshots.format import SnapshotDamaged, read_header, read_snapshot
from support.elastic.snapshot_files import header, write


def test_comes_back_as_it_was(tmp_path):
    """Weights, views that share memory, parameters, odd dtypes, empty tensors, sparse ones and plain values."""
    base = torch.arange(12.0)
    state = {
        "weight": torch.nn.Parameter(base.view(3, 4), requires_grad=False),
        "view": base[2:5],
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "sparse": torch.eye(2).to_sparse(),
        "numbers": [1, 2.5, None, {"nested": torch.tensor(7)}],
    }
    path = write(tmp_path / "a", state)
    found_header, found = read_snapshot(path)
    assert found_header.position == header().position
    assert torch.equal(found["weight"], state["weight"])
    assert type(found["weight"]) is torch.nn.Parameter
    assert not found["weight"].requires_grad
    found["weight"].data[0, 2] = 99.0
    assert found["view"][0] == 99.0  # still one memory
    assert found["bfloat16"].dtype is torch.bfloat16
    assert found["empty"].shape == (0, 3)
    assert torch.equal(found["sparse"].to_dense(), torch.eye(2))
    assert found["numbers"] == [1, 2.5, None, {"nested": torch.tensor(7)}]


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small", {"weight": torch.arange(3.0), "step": 3})


def test_every_truncation_is_noticed(small):
    """Cut after any byte, or with one byte too many: the header alone tells."""
    whole = small.read_bytes()
    for length in range(len(whole)):
        small.write_bytes(whole[:length])
        with pytest.raises(SnapshotDamaged):
            read_header(small)
    small.write_bytes(whole + b"\0")
    with pytest.raises(SnapshotDamaged):
        read_header(small)


def test_every_flipped_byte_is_noticed(small):
    """One byte changed, at any place: reading it raises; in the header, looking at it does."""
    whole = small.read_bytes()
    payload = len(whole) - read_header(small).payload
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        small.write_bytes(damaged)
        with pytest.raises(SnapshotDamaged):
            read_snapshot(small)
        if place < payload:
            with pytest.raises(SnapshotDamaged):
                read_header(small)


def test_header_keeps_the_position(tmp_path):
    """What the choice of a source goes by."""
    position = Position(global_step=7, batches_total=9, phase=LoopPhase.EPOCH_END, epoch=0, samples=36)
    path = write(tmp_path / "a", {}, position=position, instance="i", signature="s", reason="stopped", generation=4)
    found = read_header(path)
    assert (found.position, found.instance, found.signature) == (position, "i", "s")
    assert (found.reason, found.generation) == ("stopped", 4)
