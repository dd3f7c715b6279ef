"""These functions take a module's own state and give it to the same module of another worker, past all of its hooks.

Rules that this file guards:

* what counts is what the module holds, not what `state_dict` or a checkpoint hook says of it: a method that leaves frozen
  weights out of checkpoints, or saves an average in their place, changes nothing here;
* a parameter, and a buffer, persistent or not, is known by its name in the module;
* metrics of torchmetrics stay: each rank's are a share of a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import prune
from torchmetrics import Metric

from dtf_lightning.errors import ProtocolError


def dump_module(module: torch.nn.Module) -> dict[str, Any]:
    """Return parameters, buffers, `requires_grad`, modes and extra state by name. Tensors are references, not copies."""
    submodules = dict(_submodules(module))
    return {
        "parameters": {name: parameter.detach() for name, parameter in module.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "buffers": {name: buffer.detach() for name, buffer in module.named_buffers()},
        "modes": {name: (part.training, vars(part).get("track_running_stats")) for name, part in submodules.items()},
        "extra": {
            name: part.get_extra_state()
            for name, part in submodules.items()
            if type(part).get_extra_state is not torch.nn.Module.get_extra_state
        },
    }


@torch.no_grad()
def load_module(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Adopt what `dump_module` returned on another worker. Raises `ProtocolError` for a parameter that does not fit."""
    _prune_alike(module, state["parameters"])
    submodules = dict(_submodules(module))
    for name, value in state["extra"].items():
        if name in submodules:
            submodules[name].set_extra_state(value)
    mine = dict(module.named_parameters())
    for name, value in state["parameters"].items():
        parameter = mine.get(name)
        if parameter is None or (parameter.shape, parameter.dtype) != (value.shape, value.dtype):
            found = "none of that name" if parameter is None else _kind(parameter)
            raise ProtocolError(
                f"the run's model has the parameter {name} ({_kind(value)}), this worker's has {found}. A callback or "
                "hook has changed the run's model since it was made; a joiner cannot follow that."
            )
        parameter.copy_(value)
        parameter.requires_grad_(state["requires_grad"][name])
    for name, value in state["buffers"].items():
        _load_buffer(module, name, value, like=next(iter(mine.values()), value))
    for name, (training, track) in state["modes"].items():
        if name in submodules:
            submodules[name].training = training
            if track is not None:
                # Lightning's `freeze_module` sets it in a BatchNorm.
                submodules[name].track_running_stats = track


def _prune_alike(module: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    """Rename the parameters that torch's pruning has renamed in the run; the masks are buffers, and come with these.

    In the run's order: a renamed parameter goes to the end of its part, and DDP reduces parameters in their order.
    """
    mine = dict(module.named_parameters())
    for name in theirs:
        path, _, own_name = name.removesuffix("_orig").rpartition(".")
        if name not in mine and name.endswith("_orig") and name.removesuffix("_orig") in mine:
            prune.identity(module.get_submodule(path), own_name)  # type: ignore[no-untyped-call]


def _load_buffer(module: torch.nn.Module, name: str, value: torch.Tensor, *, like: torch.Tensor) -> None:
    """Copy the buffer; put a new one into its place if it has another shape, as a cache that grew in a forward pass."""
    path, _, own_name = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        raise ProtocolError(f"the run's model has the buffer {name}, this worker's has no part {path!r}") from None
    buffer = dict(owner.named_buffers(recurse=False)).get(own_name)
    if buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype):
        buffer.copy_(value)
        return
    placed = value.to((like if buffer is None else buffer).device)
    if hasattr(owner, own_name):
        setattr(owner, own_name, placed)
    else:
        owner.register_buffer(own_name, placed, persistent=False)


def _submodules(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((name, part) for name, part in module.named_modules() if not isinstance(part, Metric))


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
