"""`AdaptiveLearningRate` scales the learning rate with the world size, on top of any scheduler. Public.

Each optimizer's `step` is wrapped on the object (as PyTorch's schedulers do): during the step the learning rate is
multiplied by its factor; at all other times parameter groups, schedulers, checkpoints and joiners see the scheduler's
own value.

Private API read here: the logger connector's `should_update_logs`, the epoch loop's `_batches_that_stepped` (as
`LearningRateMonitor` does).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.events import LearningRateScaled
from dtf_lightning.elastic.lightning.host.logs import logs_this_step
from dtf_lightning.elastic.lightning.host.loops import logged_step
from dtf_lightning.elastic.lightning.host.names import Callback
from dtf_lightning.elastic.lightning.reporting.callback_events import recorder_of
from dtf_lightning.elastic.numerics.adascale import GainEstimate
from dtf_lightning.elastic.numerics.learning_rate import (
    RAMP_SHAPES,
    Ramp,
    RampShape,
    Rule,
    checked_factor,
    resolve_rule,
    scaled,
)
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl


class AdaptiveLearningRate(Callback):
    """Scale the learning rate when the number of workers, and with it the batch of a step, changes.

    Works with `ElasticCallback`, whose `learning_rate` argument adds it, and alone: the reference world size goes into
    the checkpoint, so that a run that is resumed in another world is scaled too.

    Args:
        rule: `"linear"`, `"sqrt"`, `"adam_sde"`, `"adascale"`, `"none"`, or a function of (world size, reference world
            size) that returns the factor. See `dtf_lightning.elastic.numerics.learning_rate` for the papers.
        reference_world_size: number of workers for which the learning rate was chosen; `None`: that of the first step.
        ramp_steps: optimizer steps from the old factor to the new one; `None`: the factor changes at once.
        ramp: shape of the ramp, `"linear"` or `"exponential"`.

    Raises:
        SettingsError: unknown rule or ramp, `ramp_steps` or `reference_world_size` below 1, `ramp_steps` with
            `"adascale"` (which is gradual by itself), a rule whose factor is not a finite number above 0; on `fit`:
            `"adam_sde"` with an optimizer that has no betas and eps, `"adascale"` with a gradient scaler.
    """

    def __init__(
        self,
        rule: str | Rule = "linear",
        *,
        reference_world_size: int | None = None,
        ramp_steps: int | None = None,
        ramp: RampShape = "linear",
    ) -> None:
        self.rule = resolve_rule(rule)
        self.name = rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))
        if ramp not in RAMP_SHAPES:
            raise SettingsError(f"ramp={ramp!r} is unknown; choose one of {', '.join(map(repr, RAMP_SHAPES))}")
        for name, value in (("ramp_steps", ramp_steps), ("reference_world_size", reference_world_size)):
            if value is not None and value < 1:
                raise SettingsError(f"AdaptiveLearningRate({name}={value}): must be at least 1")
        if rule == "adascale" and ramp_steps is not None:
            raise SettingsError("AdaptiveLearningRate('adascale', ramp_steps=...): its gain moves gradually by itself")
        for world_size in (1, 2, 3, 4, 8):
            checked_factor(self.rule, world_size, reference_world_size or 1)
        self.reference = reference_world_size
        self.ramp_steps, self.ramp_shape = ramp_steps or 0, ramp
        self.adam_sde, self.adascale = rule == "adam_sde", rule == "adascale"
        self._trainer: Any = None
        self._world_size: int | None = None
        """World size of the last step; `None` before the first."""
        self._ramps: list[Ramp] = []
        """Ramps of the optimizers, which may step at different times."""
        self._estimate = GainEstimate()
        self._observed: GainEstimate | None = None
        """Estimate with the current step's gradients; kept when the step is committed, on all ranks or on none."""
        self._told: tuple[int, list[float]] | None = None
        """Step and factors of the last event that was logged."""
        self._local_squares: list[torch.Tensor] = []
        self._undo: list[Callable[[], object]] = []

    # --- called by users ----------------------------------------------------------------------------------------------

    def factors(self) -> list[float]:
        """Return each optimizer's factor for its next step, provided that the world size does not change before it."""
        if not self.adascale or self._world_size is None or self.reference is None:
            return [ramp.value for ramp in self._ramps]
        gain = self._gain(self._world_size, self.reference)
        return [ramp.value * gain for ramp in self._ramps]

    # --- Lightning's hooks -------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the optimizers' steps. In a later generation only joiners call it: survivors have done it."""
        self._unwrap()
        self._trainer = trainer
        if self.adascale and trainer.scaler is not None:
            raise SettingsError(
                "learning rate rule 'adascale' cannot measure gradients that a scaler has scaled; "
                'use Trainer(precision="bf16-mixed"), or the rule "sqrt"'
            )
        for index, optimizer in enumerate(trainer.optimizers):
            self._refuse(optimizer)
            if index >= len(self._ramps):
                self._ramps.append(Ramp(start=1.0, target=1.0, steps=self.ramp_steps, shape=self.ramp_shape))
            self._wrap(optimizer, index)
        if self.adascale:
            parameter: Any  # torch leaves `register_hook` untyped
            for parameter in pl_module.parameters():
                if parameter.requires_grad:
                    self._undo.append(parameter.register_hook(self._see_gradient).remove)

    def on_before_optimizer_step(self, *hook: Any) -> None:
        *_, optimizer = hook
        if self.adascale:
            self._observe(optimizer)

    def on_before_zero_grad(self, *_: Any) -> None:
        """Forget what a rolled-back step has left, because a new step begins."""
        self._local_squares.clear()
        self._observed = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the factors as `lr-factor`, beside the scheduler's own values that `LearningRateMonitor` logs."""
        self._tell(trainer)
        if not trainer.loggers or not logs_this_step(trainer):
            return
        factors = self.factors()
        names = ["lr-factor"] if len(factors) == 1 else [f"lr-factor/{index}" for index in range(len(factors))]
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(names, factors, strict=True)), step=logged_step(trainer))

    def _tell(self, trainer: pl.Trainer) -> None:
        """Log a change of the factors as an event of an elastic run, at most once per `recorder.every` steps."""
        recorder = recorder_of(trainer)
        step, told = trainer.global_step, self._told
        if recorder is None or (told is not None and 0 <= step - told[0] < recorder.every):
            return
        factors = self.factors()
        if told is None or told[1] != factors:
            named = {str(index): factor for index, factor in enumerate(factors)}
            recorder.happened(
                LearningRateScaled, step=step, world_size=trainer.world_size, rule=self.name, factors=named
            )
            self._told = (step, factors)

    def teardown(self, *_: Any, **__: Any) -> None:
        self._unwrap()

    def state_dict(self) -> dict[str, Any]:
        return {
            "reference_world_size": self.reference,
            "world_size": self._world_size,
            "ramps": [asdict(ramp) for ramp in self._ramps],
            "estimate": self._estimate.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reference, self._world_size = state_dict["reference_world_size"], state_dict["world_size"]
        self._ramps = [Ramp(**ramp) for ramp in state_dict["ramps"]]
        self._estimate.load_state_dict(state_dict["estimate"])

    # --- one step ----------------------------------------------------------------------------------------------------

    def _wrap(self, optimizer: Any, index: int) -> None:
        original = optimizer.step
        own = optimizer.__dict__.get("step")

        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            world_size = self._trainer.world_size
            reference, ramps = self._for_world(world_size)
            factor = ramps[index].value * (self._gain(world_size, reference) if self.adascale else 1.0)
            with scaled(optimizer.param_groups, factor, adam_sde=self.adam_sde):
                result = original(*args, **kwargs)
            # Only a committed step counts: a worker that did not commit it has not seen the new world either.
            ramps[index] = ramps[index].stepped()
            self.reference, self._world_size, self._ramps = reference, world_size, ramps
            if self._observed is not None:
                self._estimate, self._observed = self._observed, None
            return result

        def unwrap() -> None:
            if optimizer.__dict__.get("step") is not step:
                return  # other code has wrapped it again
            if own is None:
                del optimizer.step
            else:
                optimizer.step = own

        optimizer.step = step
        self._undo.append(unwrap)

    def _for_world(self, world_size: int) -> tuple[int, list[Ramp]]:
        """Return the reference world size and the ramps of a step in a world of this size."""
        reference = world_size if self.reference is None else self.reference
        if world_size == self._world_size:
            return reference, list(self._ramps)
        target = checked_factor(self.rule, world_size, reference)
        if self._world_size is None:  # the first step: there is no old factor to start from
            return reference, [replace(ramp, start=target, target=target) for ramp in self._ramps]
        return reference, [ramp.toward(target) for ramp in self._ramps]

    def _refuse(self, optimizer: torch.optim.Optimizer) -> None:
        if self.adam_sde and not all({"betas", "eps"} <= group.keys() for group in optimizer.param_groups):
            raise SettingsError(
                f"learning rate rule 'adam_sde' scales betas and eps, which {type(optimizer).__name__} does not have; "
                "use 'linear' for SGD, 'sqrt' for other adaptive optimizers"
            )

    def _unwrap(self) -> None:
        while self._undo:
            self._undo.pop()()

    # --- adascale ----------------------------------------------------------------------------------------------------

    def _see_gradient(self, gradient: torch.Tensor) -> None:
        """Add up the squares of this worker's own gradient, before DDP averages it."""
        self._local_squares.append(gradient.detach().pow(2).sum())

    def _observe(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._local_squares:
            return
        world_size, accumulated = self._trainer.world_size, self._trainer.accumulate_grad_batches
        # Lightning divides the loss by the number of micro-batches: a micro-batch's own gradient is that many times larger.
        local = torch.stack(self._local_squares).sum() * accumulated
        self._local_squares.clear()
        if world_size > 1:
            dist.all_reduce(local)
        square_of_mean = sum(
            float(p.grad.pow(2).sum())
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        )
        self._observed = replace(self._estimate)
        self._observed.observe(
            mean_square=float(local) / world_size,
            square_of_mean=square_of_mean,
            num_gradients=world_size * accumulated,
        )

    def _gain(self, world_size: int, reference: int) -> float:
        return self._estimate.gain(world_size / reference, reference * self._trainer.accumulate_grad_batches)
