"""How large a model is, from the sizes in its transformers config alone. Pure.

It counts the matrices of the usual blocks (attention, feed-forward, convolutions, embeddings) and leaves out biases and
norms where they are few: it is an estimate, which the test compares with the published numbers of parameters. Attention is
taken to be fused, so that its scores are never there all at once.

Rules that this file guards:
- No size is made up: a config without those that count is refused, with the names that were looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Cost, Family, Input

FLOAT = 4
"""Bytes of a float32."""
_ROTARY = frozenset(
    [
        "bitnet",
        "bloom",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "modernbert",
        "mpt",
        "nemotron",
        "olmo",
        "olmo2",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
        "t5",
        "mt5",
        "umt5",
        "xlnet",
        "wav2vec2",
        "hubert",
        "wavlm",
    ]
)
"""Types that have no table of positions."""
_GATED = frozenset(
    [
        "bitnet",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "modernbert",
        "olmo",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
    ]
)
"""Types whose feed-forward part has three matrices."""
_UNTIED = frozenset(["llama", "mistral", "mixtral", "phi", "phi3", "gpt_neox", "falcon", "qwen2_moe"])
"""Types whose last layer has weights of its own where the config does not say."""

HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "encoder_embed_dim")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim", "ffn_hidden_size", "encoder_ffn_dim")


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Of a part: numbers of values, each for one sample."""

    parameters: int
    worked: int
    """Multiplications: those parameters that take part, times how often."""
    widest: int
    """Values that are there at once in a forward pass."""
    kept: int
    """Values that the backward pass needs."""

    def __add__(self, other: _Counted) -> _Counted:
        return _Counted(
            parameters=self.parameters + other.parameters,
            worked=self.worked + other.worked,
            widest=max(self.widest, other.widest),
            kept=self.kept + other.kept,
        )


_NOTHING = _Counted(parameters=0, worked=0, widest=0, kept=0)


def whole(config: Mapping[str, Any], names: tuple[str, ...], default: int | None = None) -> int:
    """Return the first of these sizes that a config has. Raises `SettingsError` if it has none and there is no default."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        kind = config.get("model_type", "")
        of = f" of the type {kind!r}" if kind else ""
        raise SettingsError(
            f"the config{of} does not say its sizes: none of {', '.join(names)} is a number above 0 in it. Give the "
            "whole config.json of a model, or with transformers installed the type's name for its default sizes"
        )
    return default


def cost_of_config(config: Mapping[str, Any], family: Family, inputs: tuple[Input, ...]) -> Cost:
    """Return what the model of a config takes. Raises `SettingsError` for a config without sizes."""
    tokens = _tokens(inputs)
    counted = _model(config, family, tokens, inputs)
    given = sum(_values(one) * (8 if one.dtype == "int64" else FLOAT) for one in inputs)
    weights = counted.parameters * FLOAT
    return Cost(
        parameters=counted.parameters,
        weight_bytes=weights,
        forward_fixed=weights,
        forward_per_sample=given + counted.widest * FLOAT,
        training_fixed=4 * weights,
        training_per_sample=given + (counted.kept + counted.widest) * FLOAT,
        flops_per_sample=2 * counted.worked,
        how="counted from the sizes in the config",
    )


def _values(one: Input) -> int:
    number = 1
    for size in one.shape:
        number *= size
    return number


def _tokens(inputs: tuple[Input, ...]) -> int:
    return max((one.shape[0] for one in inputs if one.dtype == "int64" and len(one.shape) == 1), default=1)


def _model(config: Mapping[str, Any], family: Family, tokens: int, inputs: tuple[Input, ...]) -> _Counted:
    parts = [
        config[key] for key in ("text_config", "vision_config", "audio_config") if isinstance(config.get(key), dict)
    ]
    if parts:
        total = _NOTHING
        for part in parts:
            inner = Family.VISION if "patch_size" in part else Family.TEXT_ENCODER
            total += _model({"model_type": config.get("model_type", ""), **part}, inner, tokens, inputs)
        return total
    if "depths" in config:
        return _stages(config, inputs)
    if family in (Family.TEXT_TO_TEXT, Family.SPEECH_TO_TEXT):
        return _encoder_decoder(config, family, tokens)
    if family is Family.DENSE_VISION and "encoder_layers" in config:
        backbone = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "embedding_size": 64}
        size = inputs[0].shape[-1]
        seen = _encoder_decoder(config, family, (size // 32) ** 2)
        return seen + _stages({**backbone, "layer_type": "bottleneck", "model_type": "resnet"}, inputs)
    if "patch_size" in config:
        return _seen_in_patches(config)
    if "conv_dim" in config:
        return _heard(config, inputs)
    return _read(config, family, tokens)


def _block(config: Mapping[str, Any], tokens: int, *, crossed: int = 0, prefix: str = "") -> _Counted:
    """Count one layer of a transformer; `crossed`: tokens of the encoder that it attends to, too."""
    kind = str(config.get("model_type", ""))
    hidden = whole(config, HIDDEN)
    heads = whole(config, (f"{prefix}attention_heads", *HEADS) if prefix else HEADS)
    inner = whole(config, (f"{prefix}ffn_dim", *INNER) if prefix else INNER, 4 * hidden)
    width = whole(config, ("head_dim", "d_kv"), max(1, hidden // heads)) * heads
    grouped = 1 if config.get("multi_query") else whole(config, ("num_key_value_heads", "num_kv_heads"), heads)
    gated = kind in _GATED or str(config.get("feed_forward_proj", "")).startswith("gated")
    attention = 2 * hidden * width + 2 * hidden * width * grouped // heads
    feed = (3 if gated else 2) * hidden * inner
    experts = whole(config, ("num_local_experts", "num_experts", "n_routed_experts"), 1)
    chosen = min(experts, whole(config, ("num_experts_per_tok",), 1))
    parameters = attention * (2 if crossed else 1) + feed * experts + 8 * hidden + inner
    return _Counted(
        parameters=parameters,
        worked=tokens * (attention * (2 if crossed else 1) + feed * chosen) + 2 * width * tokens * (tokens + crossed),
        widest=tokens * (6 * hidden + (2 if gated else 1) * 2 * inner),
        kept=tokens * (12 * hidden + (3 if gated else 2) * inner),
    )


def _times(counted: _Counted, number: int) -> _Counted:
    return _Counted(
        parameters=counted.parameters * number,
        worked=counted.worked * number,
        widest=counted.widest,
        kept=counted.kept * number,
    )


def _plain(parameters: int, worked: int = 0, values: int = 0) -> _Counted:
    return _Counted(parameters=parameters, worked=worked, widest=2 * values, kept=2 * values)


def _read(config: Mapping[str, Any], family: Family, tokens: int) -> _Counted:
    kind = str(config.get("model_type", ""))
    hidden, vocabulary = whole(config, HIDDEN), whole(config, ("vocab_size",))
    layers = whole(config, LAYERS)
    block = _block(config, tokens)
    stack = _times(block, layers)
    if kind == "albert":  # one set of weights for all layers
        groups = whole(config, ("num_hidden_groups",), 1)
        stack = _Counted(
            parameters=block.parameters * groups, worked=stack.worked, widest=stack.widest, kept=stack.kept
        )
    embedded = whole(config, ("embedding_size", "word_embed_proj_dim"), hidden)
    positions = (
        0 if kind in _ROTARY else whole(config, ("max_position_embeddings", "n_positions", "n_ctx"), 0) * embedded
    )
    table = vocabulary * embedded + positions + (embedded * hidden if embedded != hidden else 0)
    tied = bool(config.get("tie_word_embeddings", kind not in _UNTIED))
    last = 0 if tied or family is not Family.TEXT_GENERATION else vocabulary * hidden
    heads = _writes_words(config, family)
    words = _plain(table + last, vocabulary * hidden * tokens if heads else 0, vocabulary * tokens if heads else 0)
    return stack + words + _plain(0, 0, hidden * tokens)


def _writes_words(config: Mapping[str, Any], family: Family) -> bool:
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if family in (Family.TEXT_GENERATION, Family.TEXT_TO_TEXT, Family.SPEECH_TO_TEXT):
        return True
    return architecture.endswith(("ForMaskedLM", "ForPreTraining"))


def _encoder_decoder(config: Mapping[str, Any], family: Family, tokens: int) -> _Counted:
    hidden = whole(config, HIDDEN)
    vocabulary = whole(config, ("vocab_size",), 0)
    heard = tokens
    extra = _NOTHING
    if family is Family.SPEECH_TO_TEXT:
        heard = whole(config, ("max_source_positions",), tokens)
        bins = whole(config, ("num_mel_bins", "input_feat_per_channel"), 80)
        extra = _plain(
            3 * hidden * (bins + hidden) + heard * hidden, 6 * heard * hidden * (bins + hidden), 2 * heard * hidden
        )
    written = 8 if family is Family.SPEECH_TO_TEXT else tokens
    if family is Family.DENSE_VISION:
        written = whole(config, ("num_queries",), 100)
    encoder = _times(_block(config, heard, prefix="encoder_"), whole(config, ("encoder_layers", *LAYERS)))
    layers = whole(config, ("decoder_layers", "num_decoder_layers", *LAYERS))
    decoder = _times(_block(config, written, crossed=heard, prefix="decoder_"), layers)
    kind = str(config.get("model_type", ""))
    positions = 0 if kind in _ROTARY else whole(config, ("max_position_embeddings", "max_target_positions"), 0) * hidden
    last = 0 if config.get("tie_word_embeddings", True) else vocabulary * hidden
    words = _plain(
        vocabulary * hidden + (1 if heard != tokens else 2) * positions + last,
        vocabulary * hidden * written,
        vocabulary * written,
    )
    return encoder + decoder + words + extra


def _seen_in_patches(config: Mapping[str, Any]) -> _Counted:
    hidden, patch = whole(config, HIDDEN), whole(config, ("patch_size",))
    if "num_mel_bins" in config:  # a spectrogram, in overlapping patches
        step = whole(config, ("time_stride",), patch)
        tokens = ((whole(config, ("max_length",)) - patch) // step + 1) * ((config["num_mel_bins"] - patch) // step + 1)
        channels = 1
    else:
        size = config.get("image_size", 224)
        tokens = (int(size if isinstance(size, int) else size[0]) // patch) ** 2 + 1
        channels = whole(config, ("num_channels",), 3)
    stack = _times(_block(config, tokens), whole(config, LAYERS))
    seen = channels * patch * patch * hidden
    return stack + _plain(seen + tokens * hidden, seen * tokens, tokens * hidden)


def _heard(config: Mapping[str, Any], inputs: tuple[Input, ...]) -> _Counted:
    widths, kernels = list(config["conv_dim"]), list(config.get("conv_kernel", ()))
    strides = list(config.get("conv_stride", ()))
    samples = inputs[0].shape[-1]
    total, channels = _NOTHING, 1
    for width, kernel, stride in zip(widths, kernels, strides, strict=False):
        samples = max(1, (samples - kernel) // stride + 1)
        total += _plain(channels * width * kernel, channels * width * kernel * samples, 2 * width * samples)
        channels = width
    hidden = whole(config, HIDDEN)
    near = whole(config, ("num_conv_pos_embeddings",), 128) // whole(config, ("num_conv_pos_embedding_groups",), 16)
    total += _plain(channels * hidden + hidden * hidden * near, hidden * hidden * near * samples, hidden * samples)
    return total + _times(_block(config, samples), whole(config, LAYERS))


def _stages(config: Mapping[str, Any], inputs: tuple[Input, ...]) -> _Counted:
    """Count a model of stages, each on a smaller picture with more channels: ResNet, ConvNeXt, Swin and their like."""
    depths = [int(depth) for depth in config["depths"]]
    first = whole(config, ("embed_dim", "embedding_size"), 64)
    widths = [int(width) for width in config.get("hidden_sizes") or [first << stage for stage in range(len(depths))]]
    size = inputs[0].shape[-1] // 4 if inputs else 56
    before = whole(config, ("embedding_size", "embed_dim"), widths[0])
    total = _plain(49 * 3 * before, 49 * 3 * before * size * size * 4, 2 * before * size * size * 4)
    for depth, width in zip(depths, widths, strict=False):
        places = size * size
        if config.get("layer_type") == "bottleneck" or config.get("model_type") == "regnet":
            narrow = width // 4
            block, inside = 2 * width * narrow + 9 * narrow * narrow, 4 * width
        elif config.get("model_type") == "resnet":
            block, inside = 18 * width * width, 5 * width
        elif "embed_dim" in config:  # windows of attention
            window = whole(config, ("window_size",), 7) ** 2
            block, inside = 12 * width * width, 16 * width + (width // 32) * window
        else:
            block, inside = 8 * width * width + 49 * width, 12 * width
        shrink = (4 if "embed_dim" in config or "layer_type" not in config else 1) * before * width
        one = _Counted(parameters=block, worked=block * places, widest=inside * places, kept=inside * places)
        total += _times(one, depth) + _plain(shrink, shrink * places)
        before, size = width, max(1, size // 2)
    classes = len(config.get("id2label") or ()) or whole(config, ("num_labels",), 1000)
    return total + _plain(before * classes)
