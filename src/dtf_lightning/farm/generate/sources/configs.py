"""From a transformers config to what its model is given: the names, types and shapes of its inputs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Family, Input
from dtf_lightning.farm.generate.sources.config_sizes import whole

TOKENS = 32
"""Of a text, or as many as the model has positions for."""
WRITTEN = 8
"""Tokens that a model which hears speech has written."""
SOUND = 16_000
"""Values of one second of sound."""


def inputs_of_config(config: Mapping[str, Any], family: Family) -> tuple[Input, ...]:
    """Return what the model of a config is given. Raises `SettingsError` for a family whose inputs nobody can guess."""
    make = _MAKERS.get(family)
    if make is None:
        kind = config.get("model_type", "?")
        raise SettingsError(
            f"what a model of the type {kind!r} ({family.value}) is given is not known: say it by "
            "--input, as in: --input 'past_values=float32[96,1]'"
        )
    return make(config)


def _text(config: Mapping[str, Any]) -> tuple[Input, ...]:
    told = {**config, **(config.get("text_config") or {})}
    longest = whole(told, ("max_position_embeddings", "n_positions", "n_ctx"), TOKENS)
    words = whole(told, ("vocab_size",))
    return (Input(name="input_ids", dtype="int64", shape=(min(TOKENS, longest),), below=words),)


def _text_to_text(config: Mapping[str, Any]) -> tuple[Input, ...]:
    (read,) = _text(config)
    return read, Input(name="decoder_input_ids", dtype="int64", shape=read.shape, below=read.below)


def _picture(config: Mapping[str, Any]) -> tuple[Input, ...]:
    told = {**config, **(config.get("vision_config") or {})}
    size = told.get("image_size") or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    shape: tuple[int, ...] = (whole(told, ("num_channels",), 3), height, width)
    if frames := told.get("num_frames"):
        shape = (int(frames), *shape)
    return (Input(name="pixel_values", dtype="float32", shape=shape),)


def _sound(config: Mapping[str, Any]) -> tuple[Input, ...]:
    if "num_mel_bins" in config and "max_length" in config:
        shape: tuple[int, ...] = (whole(config, ("max_length",)), whole(config, ("num_mel_bins",)))
    else:
        shape = (SOUND,)
    return (Input(name="input_values", dtype="float32", shape=shape),)


def _speech(config: Mapping[str, Any]) -> tuple[Input, ...]:
    bins = whole(config, ("num_mel_bins", "input_feat_per_channel"))
    frames = 2 * whole(config, ("max_source_positions",))
    words = whole(config, ("vocab_size",))
    return (
        Input(name="input_features", dtype="float32", shape=(bins, frames)),
        Input(name="decoder_input_ids", dtype="int64", shape=(WRITTEN,), below=words),
    )


def _both(config: Mapping[str, Any]) -> tuple[Input, ...]:
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if architecture.endswith("ForConditionalGeneration"):
        return _text(config)  # how many tokens stand for a picture is the processor's secret
    if "vision_config" in config or config.get("model_type") == "vilt":
        return (*_text(config), *_picture(config))
    return _text(config)


_MAKERS = {
    Family.TEXT_ENCODER: _text,
    Family.TEXT_GENERATION: _text,
    Family.TEXT_TO_TEXT: _text_to_text,
    Family.VISION: _picture,
    Family.DENSE_VISION: _picture,
    Family.AUDIO: _sound,
    Family.SPEECH_TO_TEXT: _speech,
    Family.MULTIMODAL: _both,
}


def notes_on(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Return sentences on what was assumed of the inputs."""
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if family is Family.MULTIMODAL and architecture.endswith("ForConditionalGeneration"):
        return (
            "It is given text alone: how many tokens stand for a picture is said by its processor. Give --input for more.",
        )
    return ()
