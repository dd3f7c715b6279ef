"""Modules, optimizers and schedulers take over another worker's state by names, whatever has become of it in mid-run."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR

from dtf_lightning.elastic.lightning.checks.agreement import buffers_of, first_difference, state_of
from dtf_lightning.elastic.lightning.host.names import LRSchedulerConfig
from dtf_lightning.elastic.lightning.rewind.module_state import dump_module, load_module
from dtf_lightning.elastic.lightning.rewind.optimizer_state import (
    dump_optimizers,
    dump_schedulers,
    load_optimizers,
    load_schedulers,
)
from dtf_lightning.errors import ProtocolError


class Counter(nn.Module):
    """What `state_dict` calls an extra state, a buffer that is not saved, and one that is made in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("moving", torch.zeros(2), persistent=False)
        self.register_buffer("cache", None)

    def grow(self) -> None:
        self.count += 1
        self.moving += 1
        self.cache = torch.ones(3)
        self.register_buffer("late", torch.ones(1))

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Counter(), nn.Linear(2, 1)).to(dtype)


def make_trainer(module: nn.Module, optimizer: torch.optim.Optimizer, *schedulers: Any) -> Any:
    """What these functions use of a trainer."""
    strategy = SimpleNamespace(optimizer_state=lambda optimizer: optimizer.state_dict())

    class Trainer(SimpleNamespace):
        @property
        def lr_scheduler_configs(self) -> list[Any]:
            return list(self.strategy.lr_scheduler_configs)

    strategy.lr_scheduler_configs = [LRSchedulerConfig(scheduler) for scheduler in schedulers]
    plugin = SimpleNamespace(state_dict=dict)
    return Trainer(lightning_module=module, optimizers=[optimizer], strategy=strategy, precision_plugin=plugin)


def step(trainer: Any) -> None:
    for parameter in (p for group in trainer.optimizers[0].param_groups for p in group["params"]):
        parameter.grad = torch.randn_like(parameter)
    trainer.optimizers[0].step()


def hand_over(sender: Any, receiver: Any) -> str:
    """The first thing that differs after the receiver has loaded all."""
    state = pickle.loads(
        pickle.dumps((dump_module(sender.lightning_module), dump_optimizers(sender), dump_schedulers(sender)))
    )
    load_module(receiver.lightning_module, state[0])
    load_optimizers(receiver, state[1])
    load_schedulers(receiver, state[2])
    return first_difference(*(state_of(one) | buffers_of(one.lightning_module) for one in (receiver, sender)))


def test_module() -> None:
    """Weights, all kinds of buffers, extra state, modes, `requires_grad` and a frozen BatchNorm's switch."""
    ours, theirs = make_model(), make_model()
    ours[2].grow()
    ours[1].eval()
    ours[1].track_running_stats = False
    ours[0].requires_grad_(False)
    sender, receiver = (make_trainer(one, torch.optim.SGD(one.parameters(), lr=0.1)) for one in (ours, theirs))
    assert hand_over(sender, receiver) == "nothing"
    assert theirs[2].count == 1
    assert [part.training for part in theirs] == [True, False, True, True]
    assert theirs[1].track_running_stats is False
    assert not theirs[0].weight.requires_grad


def test_a_parameter_that_is_not_there() -> None:
    """A callback has added a layer."""
    ours, theirs = make_model(), make_model()
    ours.add_module("more", nn.Linear(2, 3))
    with pytest.raises(ProtocolError, match=r"the run's model has the parameter more.weight \(float32 \(3, 2\)\)"):
        load_module(theirs, dump_module(ours))


@pytest.mark.parametrize("names", [("weight", "bias"), ("bias", "weight"), ("weight",)])
def test_pruned_parameters(names: tuple[str, ...]) -> None:
    """Pruning puts a parameter behind the others of its layer, under another name: the receiver's order is the sender's."""
    ours, theirs = make_model(), make_model()
    for name in names:
        torch.nn.utils.prune.l1_unstructured(ours[0], name, amount=1)
    sender, receiver = (make_trainer(one, torch.optim.Adam(one.parameters(), lr=0.1)) for one in (ours, theirs))
    step(sender)
    assert hand_over(sender, receiver) == "nothing"
    assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]
    assert torch.equal(theirs[0](torch.ones(2, 2)), ours[0](torch.ones(2, 2)))


def test_groups_added_in_mid_run() -> None:
    """A group of its own for what was frozen; the receiver's optimizer has one group, without any state."""
    ours, theirs = make_model(), make_model()
    sender, receiver = (make_trainer(one, torch.optim.Adam(one[3].parameters(), lr=0.1)) for one in (ours, theirs))
    step(sender)
    sender.optimizers[0].add_param_group({"params": list(ours[0].parameters()), "lr": 0.01})
    step(sender)
    assert hand_over(sender, receiver) == "nothing"
    torch.manual_seed(0)
    step(sender)
    torch.manual_seed(0)
    step(receiver)
    assert first_difference(state_of(receiver), state_of(sender)) == "nothing"


def test_another_order_of_groups() -> None:
    """Names count, not numbers: the receiver made the same groups in another order."""
    ours, theirs = make_model(), make_model()
    orders = [[ours[0], ours[3]], [theirs[3], theirs[0]]]
    sender, receiver = (
        make_trainer(model, torch.optim.SGD([{"params": part.parameters()} for part in parts], lr=0.1, momentum=0.9))
        for model, parts in zip((ours, theirs), orders, strict=True)
    )
    step(sender)
    assert hand_over(sender, receiver) == "nothing"


def test_a_parameter_outside_of_the_module() -> None:
    """A loss's learned weight, which is the optimizer's only."""
    ours, theirs = make_model(), make_model()
    weights = [nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))]
    sender, receiver = (
        make_trainer(model, torch.optim.Adam([*model.parameters(), weight]))
        for model, weight in zip((ours, theirs), weights, strict=True)
    )
    step(sender)
    assert hand_over(sender, receiver) == "nothing"
    assert weights[1] == weights[0]


def test_the_state_keeps_its_dtype() -> None:
    """Moments in float32 beside weights in bfloat16: torch's `load_state_dict` would round them."""
    ours, theirs = make_model(torch.bfloat16), make_model(torch.bfloat16)
    sender, receiver = (
        make_trainer(one, torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)) for one in (ours, theirs)
    )
    step(sender)
    for state in sender.optimizers[0].state.values():
        state["momentum_buffer"] = torch.randn(state["momentum_buffer"].shape)
    assert hand_over(sender, receiver) == "nothing"


@pytest.mark.parametrize("has_one", [True, False])
def test_a_scheduler_that_a_callback_has_put_there(has_one: bool) -> None:
    """`StochasticWeightAveraging` replaces the first scheduler, or adds one where there is none."""
    ours, theirs = make_model(), make_model()
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (ours, theirs)]
    sender = make_trainer(ours, optimizers[0], SWALR(optimizers[0], swa_lr=0.05, anneal_epochs=3))
    mine = [torch.optim.lr_scheduler.StepLR(optimizers[1], 2)] if has_one else []
    receiver = make_trainer(theirs, optimizers[1], *mine)
    sender.strategy.lr_scheduler_configs[0].interval = "step"
    for _ in range(2):
        step(sender)
        sender.lr_scheduler_configs[0].scheduler.step()
    assert hand_over(sender, receiver) == "nothing"
    for trainer in (sender, receiver):
        trainer.lr_scheduler_configs[0].scheduler.step()
    assert optimizers[1].param_groups[0]["lr"] == optimizers[0].param_groups[0]["lr"]
    assert receiver.lr_scheduler_configs[0].interval == "step"
