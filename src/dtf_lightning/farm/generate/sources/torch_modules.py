"""A torch or Lightning module, found by `package.module:Class` or `file.py:Class`, and what it is given.

Rules that this file guards:
- What was found out about a class is told apart from what was guessed, and a guess is tried before it is believed.
- The user's class runs here only without memory (`measuring.py`), unless its constructor computes with values.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Input
from dtf_lightning.farm.generate.sources.measuring import Measured, call_training_step, measure
from dtf_lightning.settings.marked_yaml import nearest

PICTURE, SEQUENCE, WORDS = 64, 16, 32
"""Height and width of a picture, steps of a sequence, tokens of a text, where a module does not say them."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A class or function that makes a module."""

    make: Callable[[], torch.nn.Module]
    where: str
    """`package.module`, or the path of a file."""
    attribute: str
    is_file: bool


def find(given: str) -> Found:
    """Return what makes the module. Raises `SettingsError` for what is not there, or needs arguments."""
    where, _, attribute = given.rpartition(":")
    is_file = where.endswith(".py")
    module = _file(Path(where)) if is_file else _module(where)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            raise SettingsError(f"{where} has no {attribute!r}{nearest(attribute, names)}")
        target = getattr(target, part)
    if not callable(target) or isinstance(target, torch.nn.Module):
        raise SettingsError(f"{given} is {type(target).__name__} and no class or function that makes a torch module")
    _refuse_arguments(given, target)
    return Found(make=target, where=where, attribute=attribute, is_file=is_file)


def _file(path: Path) -> Any:
    if not path.is_file():
        raise SettingsError(f"there is no file {path}")
    name = f"dtf_generate_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # its name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"{path} cannot be imported: {_in_words(error)}") from error
    return module


def _module(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m pytest` has it, by which the tests are run
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SettingsError(
            f"{name} cannot be imported: {_in_words(error)}. Write package.module:Class or file.py:Class, from the "
            "folder in which the tests are to run"
        ) from error


def _refuse_arguments(given: str, target: Any) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        name = given.rpartition(":")[2]
        raise SettingsError(
            f"{given} needs the arguments {', '.join(needed)}: write a function without arguments that makes it, such as "
            f"`def small_{name.lower()}(): return {name}({', '.join(f'{one}=...' for one in needed)})`, and name that"
        )


def is_lightning(module: torch.nn.Module) -> bool:
    """Say whether it is a LightningModule, of whichever of Lightning's two names."""
    return any(
        one.__name__ == "LightningModule" and one.__module__.startswith(("lightning.", "pytorch_lightning."))
        for one in type(module).__mro__
    )


def has_own(module: torch.nn.Module, name: str) -> bool:
    """Say whether a Lightning module has a method of its own by this name, and not only Lightning's."""
    method = inspect.getattr_static(type(module), name, None)
    home = getattr(method, "__module__", "") or ""
    return method is not None and not home.startswith(("lightning.", "pytorch_lightning.", "torch."))


def census(module: torch.nn.Module) -> dict[str, int]:
    """Return how many modules of each class it has, those of torch by their base's name."""
    counts: dict[str, int] = {}
    for one in module.modules():
        name = next((base.__name__ for base in type(one).__mro__ if base.__module__.startswith("torch.nn.modules")), "")
        if name and name != "Module":
            counts[name] = counts.get(name, 0) + 1
    return counts


def inputs_of(module: torch.nn.Module, given: str) -> tuple[list[tuple[Input, ...]], str]:
    """Return what a module may be given, the likeliest first, and the rule that says so. Raises `SettingsError`."""
    names = _argument_names(module, given)
    example = getattr(module, "example_input_array", None)
    if example is not None:
        tensors = example if isinstance(example, dict) else dict(zip(names, _listed(example), strict=False))
        return [tuple(_like(name, tensor) for name, tensor in tensors.items())], "its example_input_array"
    if len(names) != 1:
        raise SettingsError(
            f"{given} takes {', '.join(names) or 'nothing'}: say what each is, without the batch, as in: "
            + " ".join(f"--input '{name}=float32[3,224,224]'" for name in names or ["x"])
        )
    return _by_first_layer(module, names[0], given)


def _listed(example: Any) -> Sequence[Any]:
    return example if isinstance(example, list | tuple) else [example]


def _like(name: str, tensor: torch.Tensor) -> Input:
    below = 2 if tensor.is_floating_point() or tensor.is_meta else int(tensor.max()) + 1
    return Input(
        name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape[1:]), below=max(2, below)
    )


def _argument_names(module: torch.nn.Module, given: str) -> list[str]:
    names = []
    for one in inspect.signature(module.forward).parameters.values():
        if one.kind in (one.VAR_POSITIONAL, one.POSITIONAL_ONLY):
            raise SettingsError(
                f"{given} takes its inputs by their places only (`{one}`), the tests give them by name: write a function "
                "that makes a module around it whose forward names them"
            )
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD:
            names.append(one.name)
    return names


def _by_first_layer(module: torch.nn.Module, name: str, given: str) -> tuple[list[tuple[Input, ...]], str]:
    for layer in module.modules():
        shapes = _shapes_for(layer)
        if shapes:
            whole = isinstance(layer, torch.nn.Embedding)
            made: list[tuple[Input, ...]] = [
                (
                    Input(
                        name=name,
                        dtype="int64" if whole else "float32",
                        shape=shape,
                        below=layer.num_embeddings if isinstance(layer, torch.nn.Embedding) else 2,
                    ),
                )
                for shape in shapes
            ]
            return made, f"its first layer, {type(layer).__name__}"
    raise SettingsError(
        f"what {given} is given cannot be told from its layers: say it, as in --input '{name}=float32[10]'"
    )


def _shapes_for(layer: torch.nn.Module) -> list[tuple[int, ...]]:
    if isinstance(layer, torch.nn.Linear):
        wide = layer.in_features
        side = round(wide**0.5)
        squares = [(1, side, side)] if side * side == wide and side > 3 else []
        return [(wide,), *squares, (SEQUENCE, wide)]
    if isinstance(layer, torch.nn.Conv2d):
        return [(layer.in_channels, size, size) for size in (PICTURE, 32, 28, 8, 224)]
    if isinstance(layer, torch.nn.Conv1d):
        return [(layer.in_channels, size) for size in (1024, 128, 16_000)]
    if isinstance(layer, torch.nn.Conv3d):
        return [(layer.in_channels, SEQUENCE, PICTURE, PICTURE)]
    if isinstance(layer, torch.nn.Embedding):
        return [(WORDS,), ()]
    if isinstance(layer, torch.nn.RNNBase):
        return [(SEQUENCE, layer.input_size)]
    if isinstance(layer, torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer):
        return [(SEQUENCE, layer.linear1.in_features)]
    return []


def measure_first_that_fits(
    build: Callable[[], torch.nn.Module], candidates: Sequence[tuple[Input, ...]], given: str
) -> tuple[tuple[Input, ...], Measured]:
    """Return the first of these inputs that the module takes. Raises `SettingsError` with what was tried."""
    tried = []
    for inputs in candidates:
        try:
            return inputs, measure(build, inputs)
        except Exception as error:
            told = ", ".join(f"{one.name}={one.dtype}{list(one.shape)}" for one in inputs)
            tried.append(f"  {told}: {_in_words(error)}")
    raise SettingsError(
        f"{given} does not take what was tried (shapes of one sample):\n"
        + "\n".join(tried)
        + "\nSay what it takes, as in: "
        f"--input '{candidates[0][0].name}=float32[3,32,32]'"
    )


def _in_words(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"


def tried_forward(
    module: torch.nn.Module,
    build: Callable[[], torch.nn.Module],
    given: str,
    inputs: tuple[Input, ...],
    *,
    lightning: bool,
) -> tuple[tuple[Input, ...], Measured | None, tuple[str, ...]]:
    """Return what `forward` is given, what it takes then, and notes; nothing for a Lightning module without one.

    Args:
        inputs: that the user has said; none: they are looked for.

    Raises `SettingsError` if it takes nothing that was tried.
    """
    if lightning and not has_own(module, "forward"):
        return (), None, ("It has no forward of its own: it is tested by its training alone.",)
    if inputs:
        _, measured = measure_first_that_fits(build, [inputs], given)
        return inputs, measured, ()
    candidates, rule = inputs_of(module, given)
    chosen, measured = measure_first_that_fits(build, candidates, given)
    return chosen, measured, (f"Its inputs are told by {rule}.",)


def tried_batch(
    module: torch.nn.Module,
    build: Callable[[], torch.nn.Module],
    given: str,
    inputs: tuple[Input, ...],
    measured: Measured | None,
) -> tuple[tuple[Input, ...], Measured, tuple[str, ...]]:
    """Return the batch of a Lightning module's `training_step`, what the step takes, and a note. Raises `SettingsError`."""
    starts = [inputs] if inputs else _by_first_layer(module, "x", given)[0]
    candidates: list[tuple[Input, ...]] = []
    for start in starts:
        candidates += [(*start, target) for target in _targets(module, measured)]
        candidates.append(start)
    tried = []
    for batch in candidates:
        try:
            trained = measure(build, batch, call_training_step)
        except Exception as error:
            told = ", ".join(f"{one.dtype}{list(one.shape)}" for one in batch)
            tried.append(f"  ({told}): {_in_words(error)}")
            continue
        told = ", ".join(f"{one.name}: {one.dtype}{list(one.shape)}" for one in batch)
        return batch, trained, (f"Its training_step takes a batch of ({told}), which was tried.",)
    raise SettingsError(
        f"training_step of {given} takes none of the batches that were tried (shapes of one sample):\n"
        + "\n".join(tried)
        + "\nGive the module a train_dataloader, by which its tests then train"
    )


def _targets(module: torch.nn.Module, measured: Measured | None) -> list[Input]:
    """Return what a loss may compare with: a class, or values like the output's."""
    linear = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    shape: tuple[int, ...] = (linear[-1].out_features,) if linear else (1,)
    if measured is not None and measured.outputs:
        shape = tuple(rest for _, rest in measured.outputs[0].shape[1:]) or ()
    classes = shape[-1] if shape else 2
    targets = [Input(name="target", dtype="int64", shape=(), below=classes)] if classes > 1 else []
    return [
        *targets,
        Input(name="target", dtype="float32", shape=shape),
        Input(name="target", dtype="float32", shape=()),
    ]


def make(found: Found, given: str) -> torch.nn.Module:
    """Return a module without memory, or with it where it computes with values. Raises `SettingsError` if it is none."""
    try:
        with torch.device("meta"):
            made = found.make()
    except Exception:
        try:
            made = found.make()
        except Exception as error:
            raise SettingsError(f"{given} cannot be made: {_in_words(error)}") from error
    if not isinstance(made, torch.nn.Module):
        raise SettingsError(f"{given} makes a {type(made).__name__}, and no torch module")
    return made
