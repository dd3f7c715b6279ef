"""What is known of a model before its tests are written. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Source(Enum):
    """Where a model comes from."""

    TRANSFORMERS = "transformers"
    TIMM = "timm"
    LIGHTNING = "lightning"
    TORCH = "torch"
    ONNX = "onnx"


class Family(Enum):
    """What a model works on, and what it makes of it. Inputs and tolerances go by it."""

    TEXT_ENCODER = "text-encoder"
    TEXT_GENERATION = "text-generation"
    TEXT_TO_TEXT = "text-to-text"
    VISION = "vision"
    DENSE_VISION = "dense-vision"
    """Boxes, masks or depth in the place of one class."""
    AUDIO = "audio"
    SPEECH_TO_TEXT = "speech-to-text"
    MULTIMODAL = "multimodal"
    TIME_SERIES = "time-series"
    RECURRENT = "recurrent"
    FEED_FORWARD = "feed-forward"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class FamilyFound:
    """A family, and why it is this one."""

    family: Family
    rule: str
    """The rule that hit, in words."""
    confidence: float
    """Between 0 and 1: how much the rule is to be trusted, by its kind. No frequency that was measured."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One argument of the model's `forward`, by its name."""

    name: str
    dtype: str
    """As torch calls it: `float32`, `int64`."""
    shape: tuple[int, ...]
    """Of one sample: without the batch."""
    below: int = 2
    """Integers are drawn from 0 up to this, exclusive."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One tensor that the model returns."""

    name: str
    dtype: str
    shape: tuple[tuple[int, int], ...]
    """Of each dimension (a, b): its size is a x batch + b."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model takes, as far as can be said without running it.

    Bytes are of tensors, at float32, as peaks over one pass: parameters and inputs among them. A peak at a batch of n is
    `fixed + n x per_sample`.
    """

    parameters: int
    """Their number."""
    weight_bytes: int
    """Of parameters and buffers."""
    forward_fixed: int
    forward_per_sample: int
    training_fixed: int
    """Forward, backward and a step of Adam, whose two moments are among it."""
    training_per_sample: int
    flops_per_sample: int
    """Of the forward pass."""
    how: str
    """How this was found out, in words."""

    def forward(self, batch_size: int) -> int:
        """Return the peak of a forward pass, bytes."""
        return self.forward_fixed + batch_size * self.forward_per_sample

    def training(self, batch_size: int) -> int:
        """Return the peak of a training step, bytes."""
        return self.training_fixed + batch_size * self.training_per_sample


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model, as its tests are written from it."""

    name: str
    """A Python name: of its folder and its files."""
    given: str
    """What the user wrote."""
    source: Source
    family: FamilyFound
    inputs: tuple[Input, ...]
    """None: it has no `forward` of its own."""
    outputs: tuple[Output, ...] = ()
    """None: they are not known before it runs."""
    cost: Cost
    build: Mapping[str, Any]
    """What templates need to build it: which keys there are goes by the source."""
    notes: tuple[str, ...] = ()
    """Sentences on what was assumed."""
    batch: tuple[Input, ...] = ()
    """Of a Lightning module without a loader of its own: the tensors of its `training_step`'s batch."""
    loads_itself: bool = False
    """Whether a Lightning module has a `train_dataloader`."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files beside the tests that the model is built from: name -> text."""
