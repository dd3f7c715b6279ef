"""Which checks a model gets, in which order and with what needs. Pure.

Rules that this file guards:
- A check that cannot be made for a model is left out with the reason, and refused if it was asked for by name.
- A memory request is what the process takes beside the model, a quarter more than the tensors that were counted, and 64
  MiB: what was counted misses what kernels take for themselves.
- What a check comes after is what of its predecessors there is on the same device; there is no cycle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Family, ModelDescription, Source
from dtf_lightning.settings.marked_yaml import nearest

MIB = 1 << 20
RUNTIME = {Source.TORCH: 288, Source.LIGHTNING: 480, Source.TRANSFORMERS: 704, Source.TIMM: 512, Source.ONNX: 352}
"""MiB of a process that has imported what it needs, pytest among it, and has no model."""
DRIVER = 2560
"""MiB of main memory beside it where a device's driver and its libraries are loaded."""
SPARE, FACTOR = 64, 1.25
"""MiB beside, and times, the tensors that were counted."""
TRACING = {"export": 160, "onnx": 448}
"""MiB that torch's tracing takes beside the model."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device that tests run on."""

    name: str
    """What the user says."""
    torch: str
    """What torch calls it."""
    resource: str = ""
    """That the farm counts it by; "": none but cores."""
    label: str = ""
    """That the farm's workers with it carry."""
    rate: float = 2e12
    """Floating-point operations a second that are expected of it."""

    @property
    def mark(self) -> str:
        """The arguments of `pytest.mark.farm` for it."""
        if not self.resource:
            return ""
        one = "gpu=1" if self.resource == "gpu" else f'needs={{"{self.resource}": 1}}'
        return f'{one}, labels=["{self.label}"]' if self.label else one


DEVICES = {
    device.name: device
    for device in (
        Device(name="cpu", torch="cpu", rate=2e10),
        Device(name="cuda", torch="cuda", resource="gpu", label="nvidia"),
        Device(name="rocm", torch="cuda", resource="gpu", label="amd"),
        Device(name="xpu", torch="xpu", resource="gpu", label="intel"),
        Device(name="mps", torch="mps", resource="accelerator", label="apple"),
    )
}
PRECISIONS = ("float32", "bfloat16", "float16")

TOLERANCES: Mapping[Family, Mapping[str, float]] = {
    Family.MULTIMODAL: {"*": 0.3, "logits_per_image": 1.2, "logits_per_text": 1.2},
    Family.RECURRENT: {"*": 0.25},
    Family.DENSE_VISION: {"*": 0.3},
    Family.UNKNOWN: {"*": 0.3},
}
"""Family -> output -> the largest error of bfloat16 beside float32, in standard deviations of the output. About twice what
eight models showed (.014 to .076, and .57 for the similarities of CLIP, which are differences of nearly equal numbers)."""
TOLERANCE = {"*": 0.16}
"""Of the other families."""
FINER = {"bfloat16": 1.0, "float16": 0.25}
"""float16 has three bits more; its errors are smaller, and its range is."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One file of tests, as its template's head says."""

    name: str
    title: str
    after: tuple[str, ...] = ()
    """Checks that must have passed before."""
    priority: int = 10
    """The higher, the earlier: a check that tells more, sooner."""
    needs: tuple[str, ...] = ("forward",)
    """Conditions that a model and the devices must meet: names of `CONDITIONS`."""
    memory: str = "forward"
    """What it takes at its peak: a name of `MEMORY`."""
    seconds: float = 2.0
    """That it takes however small the model is."""
    runs: int = 4
    """Passes for each batch size and precision."""
    exclusive: bool = False
    """Whether nothing else may run on the worker meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is to be tested."""

    devices: tuple[Device, ...]
    batch_sizes: tuple[int, ...]
    precisions: tuple[str, ...]


def _forward(model: ModelDescription, _: Choice) -> str:
    return "" if model.inputs else "it has no forward of its own"


def _torch(model: ModelDescription, _: Choice) -> str:
    return "it is an ONNX graph" if model.source is Source.ONNX else ""


def _floats(model: ModelDescription, _: Choice) -> str:
    told = [output for output in model.outputs if "float" in output.dtype]
    return "" if told or not model.outputs else "none of its outputs is of floating point"


def _training(model: ModelDescription, choice: Choice) -> str:
    if model.source is Source.LIGHTNING:
        return "" if model.batch or model.loads_itself else "it has no training_step"
    return _torch(model, choice) or _forward(model, choice) or _floats(model, choice)


def _lightning(model: ModelDescription, choice: Choice) -> str:
    return _training(model, choice) if model.source is Source.LIGHTNING else "it is no Lightning module"


def _accelerator(_: ModelDescription, choice: Choice) -> str:
    return "" if any(device.resource for device in choice.devices) else "there is no device but the CPU"


def _on_cpu(_: ModelDescription, choice: Choice) -> str:
    return (
        ""
        if any(not device.resource for device in choice.devices)
        else "it is made on the CPU, which is not among the devices"
    )


def _lower_precision(_: ModelDescription, choice: Choice) -> str:
    return "" if set(choice.precisions) - {"float32"} else "float32 is the only precision"


CONDITIONS = {
    "forward": _forward,
    "torch": _torch,
    "floats": _floats,
    "training": _training,
    "lightning": _lightning,
    "accelerator": _accelerator,
    "on_cpu": _on_cpu,
    "lower_precision": _lower_precision,
}
"""Name -> why a model and what is to be tested do not meet it; "" if they do."""


def reason_against(check: Check, model: ModelDescription, choice: Choice) -> str:
    """Return why a check cannot be made; "" if it can."""
    return next((why for name in check.needs if (why := CONDITIONS[name](model, choice))), "")


def chosen(
    checks: Sequence[Check], wanted: Sequence[str], model: ModelDescription, choice: Choice
) -> tuple[list[Check], dict[str, str]]:
    """Return the checks that are made, those that come after others behind them, and of the others why not.

    Args:
        wanted: names; none: all that can be made.

    Raises `SettingsError` for a name that is not known, and for one that was asked for and cannot be made.
    """
    known = {check.name: check for check in checks}
    for name in wanted:
        if name not in known:
            raise SettingsError(f"there is no check {name!r}{nearest(name, sorted(known))}")
    against = {check.name: reason_against(check, model, choice) for check in checks}
    refused = [name for name in wanted if against[name]]
    if refused:
        raise SettingsError(f"the check {refused[0]!r} cannot be made for {model.given}: {against[refused[0]]}")
    made = {name for name in known if not against[name] and (not wanted or name in wanted)}
    if not made:
        raise SettingsError(
            f"no check can be made for {model.given}: {'; '.join(f'{k}: {v}' for k, v in against.items())}"
        )
    ordered: dict[str, None] = {}

    def put(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise SettingsError(f"checks come after each other in a circle: {' after '.join([*above, name])}")
        for before in known[name].after:
            if before not in known:
                raise SettingsError(
                    f"the check {name!r} comes after {before!r}, which is none{nearest(before, sorted(known))}"
                )
            put(before, (*above, name))
        if name in made:
            ordered[name] = None

    for check in sorted(checks, key=lambda check: (-check.priority, check.name)):
        put(check.name, ())
    return [known[name] for name in ordered], {name: why for name, why in against.items() if why}


def predecessors(check: Check, made: Sequence[Check], checks: Sequence[Check]) -> tuple[str, ...]:
    """Return which of the checks that are made a check comes after; in the place of one that is not made, those before it."""
    by_name, there = {one.name: one for one in checks}, {one.name for one in made}
    found: dict[str, None] = {}
    for name in check.after:
        found |= dict.fromkeys([name] if name in there else predecessors(by_name[name], made, checks))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a check asks of a farm."""

    memory: int
    """MiB of main memory."""
    device_memory: int
    """MiB that are expected to be taken of a device's own; 0 on the CPU."""
    seconds: float
    """That it is expected to take."""
    timeout: int
    """Seconds."""
    priority: int


def tensor_bytes(memory: str, model: ModelDescription, choice: Choice) -> int:
    """Return the peak of the tensors of a check, bytes. `memory`: a name of `MEMORY`."""
    cost, batch = model.cost, max(choice.batch_sizes)
    return {
        "forward": cost.forward(batch),
        "twice": cost.forward(batch) + cost.weight_bytes,
        "export": cost.forward(min(batch, EXPORT_BATCH)) + cost.weight_bytes,
        "onnx": cost.forward(min(batch, EXPORT_BATCH)) + 3 * cost.weight_bytes,
        "training": cost.training(training_batch(choice)),
        "rescale": 3 * cost.training(training_batch(choice)),
    }[memory]


MEMORY = ("forward", "twice", "export", "onnx", "training", "rescale")
EXPORT_BATCH = 2


def training_batch(choice: Choice) -> int:
    """Return the batch of a training step: the smallest that is tested, and 2 at least, which normalising layers need."""
    return max(2, min(choice.batch_sizes))


def request(check: Check, model: ModelDescription, choice: Choice, device: Device) -> Request:
    """Return what a check asks for on a device."""
    tensors = tensor_bytes(check.memory, model, choice) * FACTOR / MIB
    own = RUNTIME[model.source] * (4 if check.memory == "rescale" else 1) + TRACING.get(check.memory, 0) + SPARE
    main = own + (DRIVER + model.cost.weight_bytes / MIB if device.resource else tensors)
    work = 3 * check.runs * model.cost.flops_per_sample * sum(choice.batch_sizes) * len(choice.precisions) / device.rate
    seconds = 5.0 + check.seconds + work
    return Request(
        memory=_rounded(main),
        device_memory=_rounded(tensors) if device.resource else 0,
        seconds=seconds,
        timeout=int(max(120.0, math.ceil(10 * seconds / 60) * 60)),
        priority=check.priority - min(9, int(math.log2(seconds))),
    )


def _rounded(mebibytes: float) -> int:
    return 32 * math.ceil(mebibytes / 32)


def tolerances(model: ModelDescription, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision -> output -> the largest error, in standard deviations of the output; "*": of all others."""
    family = TOLERANCES.get(model.family.family, TOLERANCE)
    return {
        precision: {name: round(value * FINER[precision], 3) for name, value in family.items()}
        for precision in precisions
        if precision != "float32"
    }
