"""From what a user writes for a model to its description: which kind of source it is, and what each kind tells.

Rules that this file guards:
- Nothing is downloaded, and no weights are read: a name is known here, or it is refused with all that was tried.
- A library that is missing is named with the command that installs it, where it is needed and not before.
"""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Family, FamilyFound, Input, ModelDescription, Source
from dtf_lightning.farm.generate.families import TYPES, family_of_census, family_of_config, said
from dtf_lightning.farm.generate.sources.config_sizes import cost_of_config
from dtf_lightning.farm.generate.sources.configs import inputs_of_config, notes_on
from dtf_lightning.settings.marked_yaml import nearest

KNOWN_MODELS = Path(__file__).with_name("known_models.json")
"""Configs of models that many use, by their names."""
_INPUT = re.compile(r"(?:(\w+)=)?([a-z]+\d*)\[([\d, ]*)\](?:<(\d+))?")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the user says beside the model."""

    inputs: tuple[Input, ...] = ()
    family: str = ""
    name: str = ""


def parse_input(text: str) -> Input:
    """Return the input that `NAME=DTYPE[SIZE,SIZE]` says, of integers with `<BELOW`. Raises `SettingsError`."""
    read = _INPUT.fullmatch(text.strip())
    if read is None or read[2] not in _DTYPES or not read[1]:
        raise SettingsError(
            f"--input {text}: expected NAME=DTYPE[SIZES] of one sample, such as 'x=float32[3,224,224]' or "
            f"'input_ids=int64[128]<30522'; types are {', '.join(_DTYPES)}"
        )
    shape = tuple(int(size) for size in read[3].split(",") if size.strip())
    return Input(name=read[1], dtype=read[2], shape=shape, below=int(read[4] or 2))


def describe(given: str, told: Told | None = None) -> ModelDescription:
    """Return the description of a model. Raises `SettingsError` for one that is not found or cannot be described.

    Args:
        given: `package.module:Class` or `file.py:Class` (a class or a function without arguments that makes a torch or
            Lightning module); a file `*.onnx`; a config.json of transformers, or a folder with one; the name of a type of
            transformers, of a model that is known here, or of timm.
    """
    told = told or Told()
    family = _family_said(told.family)
    path = Path(given)
    if ":" in given and not path.exists():
        found = _torch(given, told)
    elif path.suffix == ".onnx":
        from dtf_lightning.farm.generate.sources.onnx_graphs import describe_onnx

        found = describe_onnx(path, _python_name(path.stem))
    elif path.suffix == ".json" or path.is_dir():
        found = _config(given, _read_config(path), told, family)
    else:
        found = _by_name(given, told, family)
    return replace(found, family=family or found.family, name=_python_name(told.name) if told.name else found.name)


def _family_said(family: str) -> FamilyFound | None:
    if not family:
        return None
    try:
        return said(family)
    except ValueError:
        names = [one.value for one in Family]
        raise SettingsError(f"{family!r} is no family{nearest(family, names)}") from None


def _python_name(text: str) -> str:
    name = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)).strip("_").lower() or "model"
    return f"model_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def needed(package: str, what: str) -> SettingsError:
    """Return the error for a package that is missing."""
    return SettingsError(f"{what} needs {package}, which is not installed here: pip install {package}")


# --- names -------------------------------------------------------------------------------------------------------------


def known_models() -> dict[str, dict[str, Any]]:
    """Return the configs of models that are known here, by name."""
    known: dict[str, dict[str, Any]] = json.loads(KNOWN_MODELS.read_text(encoding="utf-8"))
    return known


def _by_name(given: str, told: Told, family: FamilyFound | None) -> ModelDescription:
    known = known_models()
    if given in known:
        return _config(given, known[given], told, family)
    tried = ["a file or folder of this name", f"the {len(known)} models that are known here"]
    if given in TYPES:
        if not is_installed("transformers"):
            raise needed("transformers", f"the type {given!r} without a config.json (for its default sizes)")
        return _config(given, _default_config(given), told, family)
    tried.append(f"the {len(TYPES)} types of transformers in the table")
    if is_installed("transformers"):
        if (config := _cached_config(given)) is not None:
            return _config(given, config, told, family)
        tried.append("configs that this machine has in its cache (nothing is downloaded)")
    else:
        tried.append("(transformers is not installed: pip install transformers)")
    if is_installed("timm"):
        from dtf_lightning.farm.generate.sources.timm_models import describe_timm, has_timm

        if has_timm(given):
            return describe_timm(given, _python_name(given), told.inputs)
        tried.append("timm's models")
    else:
        tried.append("(timm is not installed: pip install timm)")
    names = {*known, *TYPES}
    raise SettingsError(
        f"the model {given!r} is not known{nearest(given, sorted(names)) if _is_near(given, names) else ''}\n"
        "tried: "
        + "; ".join(tried)
        + "\nwrite package.module:Class or file.py:Class, a file *.onnx, or the path of a config.json"
    )


def _is_near(given: str, names: set[str]) -> bool:
    import difflib

    return bool(difflib.get_close_matches(given, names, 1))


def _default_config(kind: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(kind).to_dict()
    except Exception as error:
        raise SettingsError(f"transformers has no default config of the type {kind!r}: {error}") from error
    return {**config, "architectures": config.get("architectures") or []}


def _cached_config(name: str) -> dict[str, Any] | None:
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(name, local_files_only=True).to_dict()
    except Exception:  # not in the cache, or no name of a model at all
        return None
    return config


# --- transformers ------------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict) or not ("model_type" in config or config.get("architectures")):
        raise SettingsError(f"{file} is no config of transformers: it has neither `model_type` nor `architectures`")
    return config


def _config(given: str, config: dict[str, Any], told: Told, family: FamilyFound | None) -> ModelDescription:
    found = family or family_of_config(config)
    kind = str(config.get("model_type", ""))
    if found.family is Family.UNKNOWN:
        raise SettingsError(
            f"{given}: {found.rule} (`architectures` is {config.get('architectures')}, `model_type` is {kind!r}"
            f"{nearest(kind, sorted(TYPES)) if _is_near(kind, set(TYPES)) else ''}); say what it is by --family, one of "
            + ", ".join(one.value for one in Family if one is not Family.UNKNOWN)
        )
    inputs = told.inputs or inputs_of_config(config, found.family)
    counted = cost_of_config(config, found.family, inputs)
    described = ModelDescription(
        name=_python_name(
            Path(given).parent.name
            if Path(given).name == "config.json"
            else Path(given).stem
            if given.endswith(".json")
            else given.rpartition("/")[2]
        ),
        given=given,
        source=Source.TRANSFORMERS,
        family=found,
        inputs=inputs,
        cost=counted,
        build={"model_type": kind, "architecture": str(next(iter(config.get("architectures") or ()), ""))},
        notes=notes_on(config, found.family),
        files={"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"},
    )
    return _measured_config(described, config)


def _measured_config(described: ModelDescription, config: Mapping[str, Any]) -> ModelDescription:
    """Return the same with what transformers tells, where it is installed."""
    if not is_installed("transformers"):
        note = (
            "transformers is not installed here: sizes were counted from the config, shapes of outputs are not known."
        )
        return replace(described, notes=(*described.notes, note))
    from dtf_lightning.farm.generate.sources.measuring import measure

    try:
        measured = measure(lambda: _model_of(config), described.inputs)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        note = f"It could not be tried without memory ({type(error).__name__}: {first}): sizes were counted from the config."
        return replace(described, notes=(*described.notes, note))
    return replace(described, cost=measured.cost, outputs=measured.outputs)


def _model_of(config: Mapping[str, Any]) -> Any:
    import transformers

    made = transformers.AutoConfig.for_model(**config)
    made.use_cache = False  # as the tests have it
    architecture = next(iter(config.get("architectures") or ()), "")
    made_by = getattr(transformers, architecture, None) if architecture else None
    return transformers.AutoModel.from_config(made) if made_by is None else made_by(made)


# --- torch and Lightning -----------------------------------------------------------------------------------------------


def _torch(given: str, told: Told) -> ModelDescription:
    from dtf_lightning.farm.generate.sources import torch_modules

    found = torch_modules.find(given)
    module = torch_modules.make(found, given)
    lightning = torch_modules.is_lightning(module)
    inputs, measured, notes = torch_modules.tried_forward(module, found.make, given, told.inputs, lightning=lightning)
    loads = lightning and torch_modules.has_own(module, "train_dataloader")
    batch: tuple[Input, ...] = ()
    if lightning and torch_modules.has_own(module, "training_step") and not loads:
        batch, trained, more = torch_modules.tried_batch(module, found.make, given, inputs or told.inputs, measured)
        measured, notes = measured or trained, (*notes, *more)
    if measured is None:
        raise SettingsError(f"{given} has neither a forward nor a training_step of its own that could be tried")
    return ModelDescription(
        name=_python_name(found.attribute.rpartition(".")[2]),
        given=given,
        source=Source.LIGHTNING if lightning else Source.TORCH,
        family=family_of_census(torch_modules.census(module)),
        inputs=inputs,
        outputs=measured.outputs if inputs else (),
        cost=measured.cost,
        build={"where": found.where, "attribute": found.attribute, "is_file": found.is_file},
        notes=notes,
        batch=batch,
        loads_itself=loads,
    )


def inputs_said(texts: Sequence[str]) -> tuple[Input, ...]:
    """Return what `--input`, given several times, says. Raises `SettingsError`."""
    return tuple(parse_input(text) for text in texts)
