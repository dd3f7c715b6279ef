"""An optimizer that evaluates the loss more than once a step is refused in the first step that does so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dtf_lightning.errors import SettingsError
from support.elastic.run_of_one import Net, RunOfOne, assert_same_training, fit


class Sam(torch.optim.SGD):
    """Sharpness-aware minimization (Foret et al., 2021): climbs, evaluates again there, comes back and steps."""

    def __init__(self, parameters: Any, num_single: int = 0) -> None:
        super().__init__(parameters, lr=0.05)
        self.num_single = num_single
        """Steps before the first that evaluates twice."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        evaluate = torch.enable_grad()(closure)
        loss = evaluate()
        if self.num_single > 0:
            self.num_single -= 1
        else:
            parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            climbs = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in parameters]
            for parameter, climb in zip(parameters, climbs, strict=True):
                parameter.add_(climb)
            evaluate()
            for parameter, climb in zip(parameters, climbs, strict=True):
                parameter.sub_(climb)
        super().step()
        return loss


class SamNet(Net):
    num_single = 0

    def configure_optimizers(self) -> Any:
        return Sam(self.parameters(), self.num_single)


class InTheModule(Net):
    """The same in the module's own hook, which calls the closure itself."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        closure()
        closure()
        optimizer.step()


class Skips(Net):
    """Lightning's documented way to skip a step: the closure is called once, outside of the optimizer."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        if batch_idx % 2:
            closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)


MESSAGE = (
    r"evaluated the loss of one batch a second time.*cannot be rolled back.*once per step.*without ElasticCallback"
)


@pytest.mark.parametrize("module", [SamNet, InTheModule])
def test_refused_in_the_first_step(tmp_path: Path, run: RunOfOne, module: type[Net]) -> None:
    """Before the second evaluation, with the weights of before the step: also a checkpoint of the exception has those."""
    model = module()
    with pytest.raises(SettingsError, match=MESSAGE):
        fit(tmp_path, elastic=True, model=model)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    torch.manual_seed(3)
    for layer in model.layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    assert len(model.losses) == 1
    assert all(torch.equal(now, first) for now, first in zip(weights, model.parameters(), strict=True))


def test_refused_in_a_later_step(tmp_path: Path, run: RunOfOne) -> None:
    """One that evaluates twice only now and then: in the first step that does."""
    model = SamNet(num_single=4)
    with pytest.raises(SettingsError, match=MESSAGE):
        fit(tmp_path, elastic=True, model=model)
    assert len(model.losses) == 5


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["every_batch", "accumulation"])
def test_one_evaluation_is_fine(tmp_path: Path, run: RunOfOne, options: dict[str, Any]) -> None:
    """A closure that the module calls itself, and one for each batch of an accumulation."""
    elastic = fit(tmp_path, elastic=True, model=Skips(), **options)
    assert_same_training(elastic, fit(tmp_path, elastic=False, model=Skips(), **options))
