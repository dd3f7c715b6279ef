"""What the members' checksums mean, and what they see: rules, without a process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.elastic.lightning.checks.agreement import (
    Checksum,
    buffers_of,
    first_difference,
    minority,
    state_of,
    to_refuse,
)
from dtf_lightning.errors import SettingsError
from support.elastic.run_of_one import Net, fit


def checksum(state: int, buffers: int = 0, *, verified: bool = True) -> Checksum:
    return Checksum(state, buffers, verified)


@pytest.mark.parametrize(("rows", "sources", "refused"), [
    ([checksum(1), checksum(1)], {1: 0}, {}),
    ([checksum(1), checksum(2, verified=False)], {1: 0}, {1: 0}),
    ([checksum(1, 5), checksum(1, 6, verified=False)], {1: 0}, {1: 0}),
    ([checksum(1, 5), checksum(1, 6), checksum(1, 6, verified=False)], {2: 1}, {}),  # DDP syncs buffers in the forward pass
    ([checksum(1), checksum(2), checksum(2, verified=False)], {2: 1}, {}),  # its sender had drifted, which is no fault of it
    ([checksum(1), checksum(2, verified=False)], {}, {1: 0}),  # received in a generation that broke before the verdict
    ([checksum(1, 5), checksum(1, 6, verified=False)], {}, {}),
    ([checksum(1), checksum(2)], {}, {}),
])  # fmt: skip
def test_to_refuse(rows: list[Checksum], sources: dict[int, int], refused: dict[int, int]) -> None:
    assert to_refuse(rows, sources) == refused


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_minority(rows: list[int]) -> None:
    """The reference has the value that no other value beats; a tie goes to the lowest rank's; the others are the rest."""
    reference, others = minority(rows)
    value = rows[reference]
    assert all(rows.count(value) >= rows.count(other) for other in rows)
    assert all(rows.count(other) < rows.count(value) for other in rows[:reference])
    assert others == [rank for rank in range(len(rows)) if rows[rank] != value]


@pytest.mark.parametrize(("mine", "theirs", "said"), [
    ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, "b (here 2, there 3)"),
    ({"a": "1"}, {"a": "1", "b": "3"}, "b (here missing, there 3)"),
    ({"a": "1", "b": "2"}, {"a": "1"}, "b (here 2, there missing)"),
    ({"a": "x" * 50}, {"a": "y" * 50}, "a"),
])  # fmt: skip
def test_first_difference(mine: dict[str, str], theirs: dict[str, str], said: str) -> None:
    assert first_difference(mine, theirs) == said


CHANGES: dict[str, Any] = {
    "parameter layers.0.weight": lambda t, m: m.layers[0].weight.data.add_(1e-6),
    "requires_grad of layers.3.bias (here True, there False)": lambda t, m: m.layers[3].bias.requires_grad_(False),
    "optimizer 0, group 0: betas (here [0.9, 0.999], there [0.8, 0.999])": lambda t, m: (
        t.optimizers[0].param_groups[0].update(betas=(0.8, 0.999))
    ),
    "optimizer 0, state of layers.0.bias: exp_avg": lambda t, m: (
        t.optimizers[0].state[m.layers[0].bias]["exp_avg"].add_(1)
    ),
    "scheduler 0: last_epoch (here 18, there 19)": lambda t, m: setattr(
        t.lr_scheduler_configs[0].scheduler, "last_epoch", 19
    ),
    "buffer layers.1.running_mean": lambda t, m: m.layers[1].running_mean.add_(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_compared(tmp_path: Path, name: str) -> None:
    """Each part of a training state shows, by its own name."""
    outcome = fit(tmp_path, elastic=False, model=Net(scheduler="step"))
    before = state_of(outcome.trainer) | buffers_of(outcome.model)
    with torch.no_grad():
        CHANGES[name](outcome.trainer, outcome.model)
    assert first_difference(before, state_of(outcome.trainer) | buffers_of(outcome.model)) == name


@pytest.mark.parametrize("number", [0, -5])
def test_a_number_of_steps_that_is_none(number: int) -> None:
    with pytest.raises(
        SettingsError, match=f"verify_every_n_steps={number}.: expected a number of optimizer steps, at least 1"
    ):
        ElasticCallback(verify_every_n_steps=number)
