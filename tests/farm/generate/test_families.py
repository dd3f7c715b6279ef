"""The family of a model, from its config, its modules or its graph."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.generate.description import Family
from dtf_lightning.farm.generate.families import (
    TYPES,
    family_of_census,
    family_of_config,
    family_of_nodes,
    family_of_timm,
)
from dtf_lightning.farm.generate.sources.describing import known_models

FAMILIES = {
    "bert-base-uncased": "text-encoder",
    "roberta-base": "text-encoder",
    "xlm-roberta-base": "text-encoder",
    "distilbert-base-uncased": "text-encoder",
    "albert-base-v2": "text-encoder",
    "electra-small-discriminator": "text-encoder",
    "all-MiniLM-L6-v2": "text-encoder",
    "gpt2": "text-generation",
    "opt-125m": "text-generation",
    "bloom-560m": "text-generation",
    "pythia-160m": "text-generation",
    "Llama-2-7b-hf": "text-generation",
    "Mistral-7B-v0.1": "text-generation",
    "Qwen2-0.5B": "text-generation",
    "t5-small": "text-to-text",
    "bart-base": "text-to-text",
    "opus-mt-en-de": "text-to-text",
    "vit-base-patch16-224": "vision",
    "resnet-50": "vision",
    "convnext-tiny-224": "vision",
    "swin-tiny-patch4-window7-224": "vision",
    "dinov2-small": "vision",
    "detr-resnet-50": "dense-vision",
    "segformer-b0": "dense-vision",
    "wav2vec2-base-960h": "audio",
    "hubert-base-ls960": "audio",
    "ast-finetuned-audioset-10-10-0.4593": "audio",
    "whisper-tiny": "speech-to-text",
    "clip-vit-base-patch32": "multimodal",
    "siglip-base-patch16-224": "multimodal",
    "llava-1.5-7b-hf": "multimodal",
    "vilt-b32-finetuned-vqa": "multimodal",
}
"""What each of the configs that are known here is, by what its makers say of it."""


def test_of_configs():
    """At least 28 of 30 are right; a config's JSON is all that is looked at."""
    known = known_models()
    assert known.keys() == FAMILIES.keys()
    wrong = {name: family for name, family in FAMILIES.items() if family_of_config(known[name]).family.value != family}
    assert len(FAMILIES) >= 30
    assert len(wrong) * 30 <= 2 * len(FAMILIES), wrong


@pytest.mark.parametrize(
    ("config", "family", "rule"),
    [
        ({"architectures": ["BertForMaskedLM"]}, Family.TEXT_ENCODER, "BertForMaskedLM ends with ForMaskedLM"),
        ({"architectures": ["XForConditionalGeneration"]}, Family.TEXT_TO_TEXT, "ends with ForConditionalGeneration"),
        ({"architectures": ["XForConditionalGeneration"], "num_mel_bins": 80}, Family.SPEECH_TO_TEXT, "num_mel_bins"),
        ({"architectures": ["XModel"], "model_type": "gpt2"}, Family.TEXT_GENERATION, "the type 'gpt2'"),
        (
            {"architectures": ["XForConditionalGeneration"], "vision_config": {"a": 1}},
            Family.MULTIMODAL,
            "vision_config",
        ),
        ({"architectures": ["XForCausalLM"], "mm_vision_tower": "clip"}, Family.MULTIMODAL, "mm_vision_tower"),
        ({"architectures": ["XForCausalLM"], "text_config": {"a": 1}}, Family.TEXT_GENERATION, "ForCausalLM"),
        ({"model_type": "nobody-knows"}, Family.UNKNOWN, "neither"),
        ({}, Family.UNKNOWN, "neither"),
    ],
)
def test_the_rule_is_told(config, family, rule):
    found = family_of_config(config)
    assert found.family is family
    assert rule in found.rule
    assert (found.confidence == 0) == (family is Family.UNKNOWN)


def test_no_type_is_of_two_families():
    from dtf_lightning.farm.generate import families

    assert len(TYPES) == sum(len(names.split()) for names in families._TYPES.values())


@pytest.mark.parametrize(
    ("census", "family"),
    [
        ({"Conv2d": 3, "Linear": 1}, Family.VISION),
        ({"Conv2d": 3, "ConvTranspose2d": 2}, Family.DENSE_VISION),
        ({"Embedding": 1, "MultiheadAttention": 2, "Linear": 4}, Family.TEXT_ENCODER),
        ({"Embedding": 1, "LSTM": 1, "Linear": 1}, Family.RECURRENT),
        ({"Transformer": 1, "TransformerEncoderLayer": 2, "TransformerDecoderLayer": 2}, Family.TEXT_TO_TEXT),
        ({"Conv1d": 2}, Family.AUDIO),
        ({"Linear": 2}, Family.FEED_FORWARD),
        ({"ReLU": 2}, Family.UNKNOWN),
    ],
)
def test_of_modules(census, family):
    assert family_of_census(census).family is family


def test_of_graphs_and_timm():
    """Words are integers; what is gathered from a graph of pictures is no table of words."""
    assert family_of_nodes({"Conv": 9, "Gather": 1, "Gemm": 1}, takes_integers=False, rank=4).family is Family.VISION
    words = {"Gather": 3, "MatMul": 9, "Softmax": 2}
    assert family_of_nodes(words, takes_integers=True, rank=2).family is Family.TEXT_ENCODER
    assert family_of_nodes({"Gemm": 2}, takes_integers=False, rank=2).family is Family.FEED_FORWARD
    assert family_of_timm("resnet18").family is Family.VISION
