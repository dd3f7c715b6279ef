"""What an elastic run could only do wrongly is refused at the start, and the message says what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    WeightedRandomSampler,
)  # fmt: skip

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.lightning.callback import INERT, ElasticCallback
from dtf_lightning.elastic.lightning.strategy import ElasticDDPStrategy
from dtf_lightning.errors import SettingsError
from support.elastic.run_of_one import (
    BATCH,
    Data,
    Net,
    RunOfOne,
    assert_same_training,
    fit,
    plain_loader,
    train_loader,
)  # fmt: skip


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        data = Data()
        return (data[index] for index in range(len(data)))


class Grouped(BatchSampler):
    """A user's own batches."""


class Backwards(DistributedSampler):
    """A user's own order."""

    def __iter__(self) -> Iterator[int]:
        return reversed(list(super().__iter__()))


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OwnFetcher(Net):
    def training_step(self, dataloader_iter: Any) -> None: ...


class SecondOrder(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class CustomDDP(DDPStrategy):
    pass


LOADERS: dict[str, tuple[Callable[[], Any], str]] = {
    "stream": (lambda: DataLoader(Stream(), batch_size=2), "Stream is an IterableDataset without streams.*num_shards"),
    "no_loader": (Stream, "the training loader is a Stream; .*torch.utils.data.DataLoader"),
    "batch_sampler": (
        lambda: DataLoader(Data(), batch_sampler=Grouped(SequentialSampler(Data()), 2, drop_last=False)),
        r"has a Grouped where a plain batch size is expected.*DataLoader\(batch_size=..., shuffle=True\)",
    ),
    "no_batch_size": (lambda: DataLoader(Data(), batch_size=None), "has no batch size where a plain batch size"),
    "weighted": (
        lambda: train_loader(shuffle=False, sampler=WeightedRandomSampler([1.0] * 24, 24)),
        r"the sampler WeightedRandomSampler, whose order.*Use DataLoader\(shuffle=True\)",
    ),
    "own_order": (
        lambda: train_loader(shuffle=False, sampler=Backwards(Data(), num_replicas=1, rank=0)),
        "the sampler Backwards, whose order.*ElasticDistributedSampler",
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(tmp_path: Path, run: RunOfOne, name: str) -> None:
    """Loaders that cannot be divided anew in mid-epoch: before the first step, with the agent told."""
    loader, message = LOADERS[name]
    model = Net()
    with pytest.raises(SettingsError, match=message):
        fit(tmp_path, elastic=True, model=model, loader=loader())
    assert model.losses == []


def test_sampler_when_lightning_may_not_replace_it(tmp_path: Path, run: RunOfOne) -> None:
    """`use_distributed_sampler=False` and a plain sampler: every worker would see all the data."""
    with pytest.raises(SettingsError, match=r"the sampler SequentialSampler.*Trainer\(use_distributed_sampler=True\)"):
        fit(tmp_path, elastic=True, loader=train_loader(shuffle=False), use_distributed_sampler=False)
    assert isinstance(train_loader(shuffle=False).sampler, SequentialSampler)
    assert type(train_loader().batch_sampler) is BatchSampler


MODULES: dict[str, tuple[type[Net], str]] = {
    "manual": (Manual, "Manual uses manual optimization.*Set automatic_optimization=True"),
    "own_fetcher": (OwnFetcher, "OwnFetcher.training_step takes `dataloader_iter`.*Take `batch` instead"),
    "lbfgs": (SecondOrder, "the optimizer LBFGS changes the weights several times.*SGD, Adam"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(tmp_path: Path, run: RunOfOne, name: str) -> None:
    module, message = MODULES[name]
    with pytest.raises(SettingsError, match=message):
        fit(tmp_path, elastic=True, model=module())


def test_strategies(tmp_path: Path, run: RunOfOne) -> None:
    """A strategy whose process groups nobody knows how to form anew."""
    with pytest.raises(SettingsError, match=r"strategy=CustomDDP\) cannot be made elastic.*strategy=\"ddp\""):
        fit(tmp_path, elastic=True, strategy=CustomDDP())


def test_elastic_strategy_without_callback(tmp_path: Path, run: RunOfOne) -> None:
    """The error prints the line to write."""
    with pytest.raises(
        SettingsError, match=r'Write Trainer\(strategy="elastic_ddp", callbacks=\[ElasticCallback\(\)\]\)'
    ):
        fit(tmp_path, elastic=False, strategy=ElasticDDPStrategy())


def test_second_fit(tmp_path: Path, run: RunOfOne) -> None:
    """A process is part of one run; a second fit would have to join it again."""
    outcome = fit(tmp_path, elastic=True, max_epochs=1)
    with pytest.raises(SettingsError, match=r"has trained in an elastic run already.*another --rdzv-id"):
        outcome.trainer.fit(outcome.model, train_loader())


def test_validate_and_test_after_fit(tmp_path: Path, run: RunOfOne) -> None:
    """Only fitting is elastic; looking at the result afterwards works as ever."""
    outcome = fit(tmp_path, elastic=True, max_epochs=1)
    before = len(outcome.model.validated)
    outcome.trainer.validate(outcome.model, train_loader(shuffle=False), verbose=False)
    assert len(outcome.model.validated) == before + 24


def test_unknown_tail() -> None:
    with pytest.raises(SettingsError, match=r"ElasticCallback\(tail='round'\): choose one of 'pad', 'drop'"):
        ElasticCallback(tail="round")


def test_unknown_stop() -> None:
    with pytest.raises(SettingsError, match=r"ElasticCallback\(stop='all'\): choose one of 'together', 'any'"):
        ElasticCallback(stop="all")


@pytest.mark.parametrize(
    ("callback", "trainer", "message"),
    [
        ({"batch": "global"}, {"accumulate_grad_batches": 2}, r"got Trainer\(accumulate_grad_batches=2\)"),
        ({"batch": "global"}, {"limit_train_batches": 3}, r"got Trainer\(limit_train_batches=3\)"),
        (
            {"tail": "exact"},
            {"limit_train_batches": 0.5},
            r"tail='exact'\) plans .* got Trainer\(limit_train_batches=0.5",
        ),
        (
            {"tail": "exact"},
            {"callbacks": [pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})]},
            "a GradientAccumulationScheduler would change them",
        ),
    ],
)
def test_batch_policies(tmp_path: Path, run: RunOfOne, callback: Any, trainer: Any, message: str) -> None:
    """Steps that are planned ahead cannot be cut or regrouped by others."""
    with pytest.raises(SettingsError, match=message):
        fit(tmp_path, elastic=True, **callback, **trainer)


def test_global_batch_needs_no_rule() -> None:
    with pytest.raises(SettingsError, match="same samples in every world, so that its learning rate needs no rule"):
        ElasticCallback(batch="global", learning_rate="linear")


def under_stock_torchrun(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """What torchelastic sets for its only worker; the store at `port` is the agent's."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0",
        "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "elastic_ddp"])
def test_accepted_strategies(tmp_path: Path, run: RunOfOne, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's default, `ddp` and our own give the same training."""
    under_stock_torchrun(monkeypatch, 1)
    elastic = fit(tmp_path, elastic=True, run=run, strategy=strategy, max_epochs=2)
    monkeypatch.undo()
    assert type(elastic.trainer.strategy) is ElasticDDPStrategy
    assert run.num_generations() == 1
    assert_same_training(elastic, fit(tmp_path, elastic=False, max_epochs=2))


@pytest.mark.parametrize("sampler", [ElasticDistributedSampler, DistributedSampler])
def test_accepted_samplers(tmp_path: Path, run: RunOfOne, sampler: Any) -> None:
    """The user's own elastic or distributed sampler, unshuffled, with Lightning's help or without."""
    data = Data()
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler(data, num_replicas=1, rank=0, shuffle=False))
    elastic = fit(tmp_path, elastic=True, loader=loader, use_distributed_sampler=False)
    assert_same_training(elastic, fit(tmp_path, elastic=False, loader=plain_loader(shuffle=False)))


def test_inert_without_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun has not started this process: same training as without the callback, said exactly once."""
    said: list[str] = []
    monkeypatch.setattr("dtf_lightning.elastic.lightning.callback.rank_zero_info", said.append)
    inert = fit(tmp_path, elastic=True, max_epochs=2)
    inert.trainer.validate(inert.model, train_loader(), verbose=False)
    assert said == [INERT]
    without = fit(tmp_path, elastic=False, loader=train_loader(), max_epochs=2)
    inert.model.validated = without.model.validated
    assert inert.model.losses == without.model.losses
    assert not pl.Trainer(callbacks=[ElasticCallback()], logger=False, barebones=False).callbacks[0].state_dict()


def test_elastic_strategy_without_agent() -> None:
    """Chosen by hand and not started by torchrun: the error prints the command to start with."""
    with pytest.raises(SettingsError, match=r"torchrun --nnodes=1:4 --rdzv-backend=etcd .* train.py"):
        ElasticDDPStrategy()
