"""From a model to a folder of tests and a plan: `generate_tests`.

Rules that this file guards:
- A file that somebody has changed is left alone, and said to be: its first line carries the digest of what was written.
- All files are made before the first is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.checks import (
    DEVICES,
    EXPORT_BATCH,
    PRECISIONS,
    Check,
    Choice,
    Device,
    Request,
    chosen,
    predecessors,
    request,
    tolerances,
    training_batch,
)
from dtf_lightning.farm.generate.description import Input, ModelDescription, Output, Source
from dtf_lightning.farm.generate.sources.describing import Told, describe, inputs_said
from dtf_lightning.farm.generate.templates import TemplateLibrary
from dtf_lightning.settings.marked_yaml import nearest

OUTPUT = "generated"
BATCH_SIZES = (1, 4)
_SIGNED = re.compile(r"\A# dtf farm generate: ([0-9a-f]{16})[^\n]*\n")


@dataclass(frozen=True, kw_only=True)
class PlannedTask:
    """One task of the plan: a check on a device."""

    name: str
    check: str
    device: Device
    command: tuple[str, ...]
    request: Request
    amounts: Mapping[str, float]
    exclusive: bool
    after: tuple[str, ...]
    """Names of tasks."""

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def timeout(self) -> int:
        return self.request.timeout


@dataclass(frozen=True, kw_only=True)
class GeneratedTests:
    """What was written."""

    model: ModelDescription
    folder: Path
    files: tuple[str, ...]
    """In the folder, in the order in which they were written."""
    kept: tuple[str, ...]
    """Of them those that somebody has changed: they were left as they are."""
    left_out: Mapping[str, str]
    """Check -> why it is not made."""
    tasks: tuple[PlannedTask, ...]

    @property
    def plan(self) -> Path:
        """The plan's file."""
        return self.folder / "plan.yaml"

    def to_json(self) -> dict[str, Any]:
        """As a command prints it."""
        cost, family = self.model.cost, self.model.family
        return {
            "model": self.model.given,
            "source": self.model.source.value,
            "family": {"name": family.family.value, "rule": family.rule, "confidence": family.confidence},
            "parameters": cost.parameters,
            "how": cost.how,
            "inputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in self.model.inputs],
            "notes": list(self.model.notes),
            "folder": str(self.folder),
            "files": list(self.files),
            "kept": list(self.kept),
            "left_out": dict(self.left_out),
            "tasks": [
                {
                    "name": task.name,
                    "check": task.check,
                    "device": task.device.name,
                    "needs": dict(task.amounts),
                    "device_memory": task.request.device_memory,
                    "seconds": round(task.request.seconds, 1),
                    "timeout": task.timeout,
                    "priority": task.priority,
                    "after": list(task.after),
                }
                for task in self.tasks
            ],
        }


def generate_tests(
    model_name: str,
    hardware_types: Sequence[str] = ("cpu",),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    checks: Sequence[str] = (),
    precisions: Sequence[str] = ("float32", "bfloat16"),
    output: str | Path = OUTPUT,
    templates: str | Path | None = None,
    inputs: Sequence[str] = (),
    family: str = "",
    name: str = "",
    python: str = "python",
    force: bool = False,
) -> GeneratedTests:
    """Write the tests of a model into a folder of `output`, with a plan that runs them on a farm.

    Args:
        model_name: as `dtf farm generate MODEL`: `package.module:Class`, `file.py:Class`, a function that makes a torch
            module, a config.json of transformers, a name, or a file `*.onnx`.
        hardware_types: devices: `cpu`, `cuda`, `rocm`, `xpu`, `mps`.
        batch_sizes: that are tested, in samples.
        checks: names; none: all that can be made.
        precisions: of `float32`, `bfloat16`, `float16`.
        templates: a folder whose files take the place of the package's, or add checks.
        inputs: what `forward` is given, as `--input` has it; none: it is found out.
        family: of the model, where the rules err; "": they say it.
        name: of the folder and the files; "": from the model's.
        python: words that start Python on workers.
        force: write over files that were changed, too.

    Raises `SettingsError` for what cannot be tested, with what was tried; nothing is written then.
    """
    choice = _choice(hardware_types, batch_sizes, precisions)
    library = TemplateLibrary(None if templates is None else Path(templates))
    model = describe(model_name, Told(inputs=inputs_said(inputs), family=family, name=name))
    made, left_out = chosen(library.checks, checks, model, choice)
    folder = _below_here(Path(output) / model.name)
    tasks = plan_tasks(made, library.checks, model, choice, folder, python)
    files = _render(library, model, made, choice, folder, tasks)
    written, kept = _write(folder, files, force=force)
    return GeneratedTests(model=model, folder=folder, files=written, kept=kept, left_out=left_out, tasks=tuple(tasks))


def _choice(hardware: Sequence[str], batch_sizes: Sequence[int], precisions: Sequence[str]) -> Choice:
    for device in hardware:
        if device not in DEVICES:
            raise SettingsError(f"{device!r} is no device{nearest(device, DEVICES)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise SettingsError(f"{precision!r} is no precision{nearest(precision, PRECISIONS)}")
    for size in batch_sizes:
        if type(size) is not int or size < 1:  # `True` is no size
            raise SettingsError(f"a batch size is a whole number of samples, 1 or more; got {size!r}")
    if not hardware or not batch_sizes or not precisions:
        raise SettingsError("tests need one device, one batch size and one precision at least")
    return Choice(
        devices=tuple(DEVICES[name] for name in dict.fromkeys(hardware)),
        batch_sizes=tuple(sorted(set(batch_sizes))),
        precisions=tuple(one for one in PRECISIONS if one in precisions),
    )


def plan_tasks(
    made: Sequence[Check],
    checks: Sequence[Check],
    model: ModelDescription,
    choice: Choice,
    folder: Path,
    python: str,
) -> list[PlannedTask]:
    """Return a task for each check on each device on which it says something, those that come after others behind them."""
    tasks: dict[tuple[str, str], PlannedTask] = {}
    for check in made:
        for device in choice.devices:
            if (device.resource and "on_cpu" in check.needs) or (not device.resource and "accelerator" in check.needs):
                continue
            asked = request(check, model, choice, device)
            before = [
                tasks[one, device.name].name for one in predecessors(check, made, checks) if (one, device.name) in tasks
            ]
            amounts = {"cpu": 1.0, "memory": float(asked.memory)} | ({device.resource: 1.0} if device.resource else {})
            tasks[check.name, device.name] = PlannedTask(
                name=f"{check.name}-{device.name}",
                check=check.name,
                device=device,
                command=(*python.split(), "-m", "pytest", (folder / _file(model, check)).as_posix()),
                request=asked,
                amounts=amounts,
                exclusive=check.exclusive,
                after=tuple(before),
            )
    return list(tasks.values())


def _below_here(folder: Path) -> Path:
    """Return a folder relative to where the command was given, if it lies there."""
    with contextlib.suppress(ValueError):
        return folder.resolve().relative_to(Path.cwd())
    return folder


def _file(model: ModelDescription, check: Check) -> str:
    return f"test_{model.name}_{check.name}.py"


# --- what templates get --------------------------------------------------------------------------------------------------


def _render(
    library: TemplateLibrary,
    model: ModelDescription,
    made: Sequence[Check],
    choice: Choice,
    folder: Path,
    tasks: Sequence[PlannedTask],
) -> dict[str, str]:
    """Return file -> text."""
    values = _values(model, choice, folder) | {"tasks": tasks, "plan_name": f"tests-of-{model.name.replace('_', '-')}"}
    files = {"conftest.py": library.render("conftest.py", values)}
    for check in made:
        asked = [task.request for task in tasks if task.check == check.name]
        # A module's mark is one for all devices: what the CPU needs is more than what a device leaves in main memory, or less.
        memory, timeout = max(one.memory for one in asked), max(one.timeout for one in asked)
        mark = f'memory="{memory}MiB", timeout={timeout}' + (", exclusive=True" if check.exclusive else "")
        files[_file(model, check)] = library.render(
            f"test_{check.name}.py", values | {"request": _Asked(mark, memory, timeout)}
        )
    files["plan.yaml"] = library.render("plan.yaml", values)
    return {**{name: _signed(text) for name, text in files.items()}, **model.files}


@dataclass(frozen=True)
class _Asked:
    """`mark`: the arguments of `pytest.mark.farm`; `memory` in MiB, `timeout` in seconds."""

    mark: str
    memory: int
    timeout: int


@dataclass(frozen=True)
class _InputForTemplates:
    """One input, in Python's words."""

    name: str
    dtype: str
    is_whole: bool
    below: int
    sizes: tuple[int, ...]
    cast: str

    def shape(self, batch: str) -> str:
        """The shape of a batch; `batch`: its size, as an expression."""
        return f"({', '.join([batch, *map(str, self.sizes)])}{'' if self.sizes else ','})"


@dataclass(frozen=True)
class _OutputForTemplates:
    """One output, in Python's words."""

    name: str
    dtype: str
    shape_text: str


def _values(model: ModelDescription, choice: Choice, folder: Path) -> dict[str, Any]:
    build = {"is_file": False, **model.build}
    if "where" in build and (build.get("is_file") or model.source is Source.ONNX):
        build["path"] = Path(os.path.relpath(build["where"], folder)).as_posix()
    shown = {
        "given": model.given,
        "title": model.given.rpartition(":")[2].rpartition("/")[2] or model.name,
        "name": model.name,
        "source": model.source.value,
        "family": model.family,
        "cost": model.cost,
        "build": build,
        "notes": model.notes,
        "inputs": [_input(one) for one in model.inputs],
        "outputs": [_output(one) for one in model.outputs],
        "batch": [_input(one) for one in model.batch],
        "loads_itself": model.loads_itself,
    }
    return {
        "model": shown,
        "devices": choice.devices,
        "batch_sizes": list(choice.batch_sizes),
        "precisions": list(choice.precisions) if model.source is not Source.ONNX else ["float32"],
        "lower_precisions": [one for one in choice.precisions if one != "float32"],
        "tolerances": tolerances(model, choice.precisions),
        "reference_tolerance": 0.02,
        "training_batch": training_batch(choice),
        "export_batch": EXPORT_BATCH,
        "metric_example": f"latency.{model.name}.{choice.devices[0].torch}.{choice.precisions[0]}.b{choice.batch_sizes[0]}:s",
    }


def _input(one: Input) -> _InputForTemplates:
    is_whole = "float" not in one.dtype
    below = 2 if one.dtype == "bool" else one.below
    cast = "" if one.dtype == "int64" else f", dtype=torch.{one.dtype}"
    return _InputForTemplates(
        name=one.name,
        dtype=one.dtype,
        is_whole=is_whole,
        below=below,
        sizes=one.shape,
        cast=cast if is_whole else "",
    )


def _output(one: Output) -> _OutputForTemplates:
    sizes = [_size(*size) for size in one.shape]
    return _OutputForTemplates(
        name=one.name, dtype=one.dtype, shape_text=f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
    )


def _size(times: int, rest: int) -> str:
    if not times:
        return str(rest)
    grown = "batch" if times == 1 else f"{times} * batch"
    return f"{grown} + {rest}" if rest > 0 else f"{grown} - {-rest}" if rest else grown


# --- files ---------------------------------------------------------------------------------------------------------------


def _signed(text: str) -> str:
    """Put the digest of a text above it, by which a change is noticed."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"# dtf farm generate: {digest}; once changed, this file is left alone\n{text}"


def _is_as_written(text: str) -> bool:
    signed = _SIGNED.match(text)
    return signed is not None and hashlib.sha256(text[signed.end() :].encode()).hexdigest()[:16] == signed[1]


def _write(folder: Path, files: Mapping[str, str], *, force: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the files that nobody has changed; returns the names of all, and of those that were kept."""
    kept = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path, before = folder / name, None
            with contextlib.suppress(FileNotFoundError):
                before = path.read_text(encoding="utf-8")
            if before == text:
                continue
            if before is not None and not force and not _is_as_written(before):
                kept.append(name)
                continue
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"the tests cannot be written into {folder}: {error.strerror}") from error
    return tuple(files), tuple(kept)
