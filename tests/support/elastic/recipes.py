"""What users' scripts do with checkpoints and parameters, each as small as it can be."""

from __future__ import annotations

import threading
from typing import Any

import torch
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint
from torch import nn
from torchmetrics import SumMetric

from dtf_lightning.elastic.lightning.run import live_snapshots, worker_run
from support.elastic.training import Model, Training


class SavesAverage(Model):
    """Keeps an average of the weights, which is what its checkpoints have in the place of the weights."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.average = {name: value.clone() for name, value in self.state_dict().items()}

    def on_train_batch_end(self, *_: Any) -> None:
        for name, value in self.state_dict().items():
            self.average[name] = (self.average[name] + value) / 2

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["state_dict"]


class SavesWithoutFirstLayer(Model):
    """Leaves a part of its weights out of checkpoints, as adapters do."""

    strict_loading = False

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "network.0" not in name}


class Counts(Model):
    """Counts what it evaluates in a metric and in a list, and logs the mean loss of all samples."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.seen = SumMetric()
        self.outs: list[float] = []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.outs.append(float(len(batch[0])))
        self.seen.update(float(len(batch[0])))
        self.log("loss", nn.functional.mse_loss(self.network(batch[0]), batch[1]), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log("seen", self.seen.compute())
        self.log("listed", sum(self.outs), sync_dist=True, reduce_fx="sum")
        self.outs.clear()
        self.seen.reset()

    def on_validation_epoch_end(self) -> None:
        self.on_test_epoch_end()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.network(batch[0])


class HookRaises(Model):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise ZeroDivisionError("in the user's hook")


class DoesNotPickle(Model):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lock"] = threading.Lock()


class LoadRaises(Model):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise ZeroDivisionError("in the user's hook")


class Gathers(Model):
    """Its hook uses a collective, as a metric or a sharded table does; plain Lightning calls it on all ranks."""

    gathered = 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gathered"] = float(self.all_gather(torch.ones(1)).sum())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gathered = checkpoint["gathered"]


class WithBackbone(Model):
    """Its first layer is a backbone, which `BackboneFinetuning` unfreezes."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.backbone, self.network[0] = self.network[0], nn.Identity()
        self.network = nn.Sequential(self.backbone, *self.network[1:])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


class Unfreezes(Model):
    """Trains its first layer from the second epoch on."""

    def configure_optimizers(self) -> Any:
        self.network[0].requires_grad_(False)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.network[0].requires_grad_(True)


class UnfreezesInMidStep(Unfreezes):
    """Between two micro-batches of an accumulation, for good."""

    def on_train_epoch_start(self) -> None:
        pass

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.network[0].requires_grad_(True)


class UnfreezesOnRankZero(Unfreezes):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        worker_run.PEERS_PATIENCE = 0.03  # type: ignore[assignment]  2 s instead of 10 minutes

    def on_train_epoch_start(self) -> None:
        if self.global_rank == 0:
            super().on_train_epoch_start()


class HasNoPatience(Model):
    """Does not wait for long for somebody who holds the run's state."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        live_snapshots.HOLDER_PATIENCE = 0.02  # 1.2 s instead of a minute


class Drifts(Model):
    """Its second rank changes a weight that no other one changes."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_rank == 1 and self.global_step == 3:
            with torch.no_grad():
                self.network[0].bias[0] += 1


class JoinerStartsAnew(Model):
    """A hook that a joiner runs alone, after it has received the state."""

    def on_train_start(self) -> None:
        if self.global_step:
            with torch.no_grad():
                self.network[0].bias[0] += 1


class GathersOutputs(Model):
    """Gathers the outputs of its steps for the end of the epoch, where it needs those of all ranks, and forgets them."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.outs: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outs.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_of_outs", self.all_gather(torch.stack(self.outs).mean()).mean())
        self.log("num_outs", self.all_gather(torch.tensor(float(len(self.outs)))).sum())
        self.outs.clear()


class GathersOutputsApart(GathersOutputs):
    """One rank's hook fails behind its collectives, when the others' are done."""

    failed = False

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.global_rank == 2 and not GathersOutputsApart.failed:
            GathersOutputsApart.failed = True
            raise RuntimeError("[gloo] Connection closed by peer")


MODELS: dict[str, type[Model]] = {
    "counts": Counts,
    "saves_average": SavesAverage,
    "saves_without_first_layer": SavesWithoutFirstLayer,
    "hook_raises": HookRaises,
    "does_not_pickle": DoesNotPickle,
    "load_raises": LoadRaises,
    "gathers": Gathers,
    "backbone": WithBackbone,
    "unfreezes": Unfreezes,
    "unfreezes_in_mid_step": UnfreezesInMidStep,
    "unfreezes_on_rank_zero": UnfreezesOnRankZero,
    "has_no_patience": HasNoPatience,
    "drifts": Drifts,
    "joiner_starts_anew": JoinerStartsAnew,
    "gathers_outputs": GathersOutputs,
    "gathers_outputs_apart": GathersOutputsApart,
}


def callbacks(recipe: str) -> list[Callback]:
    """The callbacks that belong to a recipe."""
    if recipe.startswith("gathers_outputs"):
        return [ModelCheckpoint(save_on_train_epoch_end=True)]
    return [BackboneFinetuning(unfreeze_backbone_at_epoch=1)] if recipe == "backbone" else []
