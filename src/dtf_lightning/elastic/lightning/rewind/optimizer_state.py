"""These functions take the state of optimizers and learning rate schedulers, and give it to those of another worker.

A parameter is known by its name in the module, so that a worker takes over groups that a callback has added, split or
reordered in mid-run (`BackboneFinetuning`). A scheduler that a callback has put into another one's place, as
`StochasticWeightAveraging` does, is made here, too.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning.elastic.lightning.host.names import LRSchedulerConfig
from dtf_lightning.errors import ProtocolError

if TYPE_CHECKING:
    import lightning.pytorch as pl

_CONFIG = ("name", "interval", "frequency", "reduce_on_plateau", "monitor", "strict")
"""Fields of Lightning's `LRSchedulerConfig` besides the scheduler."""


def dump_optimizers(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Return each optimizer's `state_dict` with parameters' names in place of their numbers. Tensors are references."""
    return [_dump_optimizer(trainer, optimizer) for optimizer in trainer.optimizers]


def _dump_optimizer(trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[str, Any] = dict(trainer.strategy.optimizer_state(optimizer))
    parameters = named_parameters(trainer.lightning_module, optimizer)
    names = list(parameters)
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state.pop("param_groups")]
    own = {name: parameter.detach() for name, parameter in parameters.items() if name.startswith(_OUTSIDE)}
    entries = {names[number]: value for number, value in state.pop("state").items()}
    return {"param_groups": groups, "state": entries, "rest": state, "outside": own}


_OUTSIDE = "outside of the module, number "


def named_parameters(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's parameters in its order, by their name in the module.

    Those that are not the module's have a name that says so, and their number among the optimizer's parameters.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[int, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(id(parameter), parameter)
    return {names.get(key, f"{_OUTSIDE}{number}"): found[key] for number, key in enumerate(found)}


@torch.no_grad()
def load_optimizers(trainer: pl.Trainer, states: list[dict[str, Any]]) -> None:
    """Adopt what `dump_optimizers` returned on another worker, into the same optimizers.

    Raises `ProtocolError` for parameters or optimizers that this worker does not have.
    """
    if len(states) != len(trainer.optimizers):
        raise ProtocolError(
            f"the run has {len(states)} optimizers, this worker has {len(trainer.optimizers)}: a callback has added or "
            "removed some in mid-run, which a joiner cannot follow"
        )
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        _load_optimizer(trainer.lightning_module, optimizer, state)


def _load_optimizer(module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    known: dict[str, torch.Tensor] = dict(module.named_parameters())
    known |= {name: value for name, value in named_parameters(module, optimizer).items() if name.startswith(_OUTSIDE)}
    wanted = [group["params"] for group in state["param_groups"]]
    missing = [name for names in wanted for name in names if name not in known]
    if missing:
        raise ProtocolError(
            f"the run's {type(optimizer).__name__} steps the parameter {missing[0]}, which this worker does not have"
        )
    by_tensor = {id(tensor): name for name, tensor in known.items()}
    mine = [[by_tensor[id(tensor)] for tensor in group["params"]] for group in optimizer.param_groups]
    if mine != wanted:
        optimizer.param_groups = [
            {**group, "params": [known[name] for name in group["params"]]} for group in state["param_groups"]
        ]
    for name, value in state["outside"].items():
        known[name].copy_(value)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for names in wanted for name in names))}
    optimizer.load_state_dict(
        {
            **state["rest"],
            "state": {numbers[name]: value for name, value in state["state"].items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]
            ],
        }
    )
    for name, values in state["state"].items():
        _keep_dtypes(optimizer.state[known[name]], values)


def _keep_dtypes(loaded: Any, sent: Any) -> None:
    """Undo torch's conversion of an optimizer's state to the parameter's dtype: the run's has the one it was sent in."""
    if not isinstance(loaded, dict):
        return
    for key, value in sent.items():
        if isinstance(value, torch.Tensor) and isinstance(loaded.get(key), torch.Tensor):
            loaded[key] = value.to(loaded[key].device) if loaded[key].dtype != value.dtype else loaded[key]


# --- schedulers --------------------------------------------------------------------------------------------------------


def dump_schedulers(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Return each scheduler's state, class and optimizer, and what Lightning knows about it."""
    return [
        {
            "state": config.scheduler.state_dict(),
            "class": _class_of(config.scheduler),
            "optimizer": _number_of(getattr(config.scheduler, "optimizer", None), trainer.optimizers),
            "config": {name: getattr(config, name) for name in _CONFIG if hasattr(config, name)},
        }
        for config in trainer.lr_scheduler_configs
    ]


def load_schedulers(trainer: pl.Trainer, states: list[dict[str, Any]]) -> None:
    """Adopt what `dump_schedulers` returned on another worker; makes schedulers that a callback has put in there.

    Raises `ProtocolError` for one that cannot be made here.
    """
    configs: list[Any] = list(trainer.lr_scheduler_configs)[: len(states)]
    for index, state in enumerate(states):
        if index == len(configs):
            configs.append(LRSchedulerConfig(_make_scheduler(trainer.optimizers[state["optimizer"]], state)))
        elif _name(configs[index].scheduler) != state["class"]["name"]:
            configs[index].scheduler = _make_scheduler(trainer.optimizers[state["optimizer"]], state)
        configs[index].scheduler.load_state_dict(state["state"])
        for name, value in state["config"].items():
            setattr(configs[index], name, value)
    trainer.strategy.lr_scheduler_configs = configs


def _make_scheduler(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Any:
    """Return a scheduler of another class than this worker's, without what its `load_state_dict` brings."""
    pickled = state["class"]["pickled"]
    if pickled is None:
        raise ProtocolError(
            f"a callback has put a scheduler {state['class']['name']} in the place of the run's first one; it is no class "
            "of a module, so that this worker cannot make one"
        )
    kind = pickle.loads(pickled)
    scheduler = kind.__new__(kind)
    scheduler.optimizer = optimizer
    return scheduler


def _class_of(scheduler: Any) -> dict[str, Any]:
    try:
        pickled = pickle.dumps(type(scheduler))
    except (pickle.PicklingError, AttributeError):  # a class inside a function
        pickled = None
    return {"name": _name(scheduler), "pickled": pickled}


def _name(scheduler: Any) -> str:
    return f"{type(scheduler).__module__}.{type(scheduler).__qualname__}"


def _number_of(optimizer: Any, optimizers: list[Any]) -> int:
    return next((number for number, one in enumerate(optimizers) if one is optimizer), 0)
