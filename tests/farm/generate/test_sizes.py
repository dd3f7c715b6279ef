"""How large a model is: from its config alone, and by passes without memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Input
from dtf_lightning.farm.generate.families import family_of_config
from dtf_lightning.farm.generate.sources.config_sizes import cost_of_config
from dtf_lightning.farm.generate.sources.configs import inputs_of_config
from dtf_lightning.farm.generate.sources.describing import known_models
from dtf_lightning.farm.generate.sources.measuring import measure, tensors_of

PUBLISHED = {
    "bert-base-uncased": 109.5, "roberta-base": 124.7, "xlm-roberta-base": 278.3, "distilbert-base-uncased": 67.0,
    "albert-base-v2": 11.2, "electra-small-discriminator": 13.5, "all-MiniLM-L6-v2": 22.7, "gpt2": 124.4, "opt-125m": 125.2,
    "bloom-560m": 559.2, "pythia-160m": 162.3, "Llama-2-7b-hf": 6738.4, "Mistral-7B-v0.1": 7241.7, "Qwen2-0.5B": 494.0,
    "t5-small": 60.5, "bart-base": 139.4, "opus-mt-en-de": 74.4, "vit-base-patch16-224": 86.6, "resnet-50": 25.6,
    "convnext-tiny-224": 28.6, "swin-tiny-patch4-window7-224": 28.3, "dinov2-small": 22.1, "detr-resnet-50": 41.5,
    "wav2vec2-base-960h": 94.4, "hubert-base-ls960": 94.4, "ast-finetuned-audioset-10-10-0.4593": 86.6, "whisper-tiny": 37.8,
    "clip-vit-base-patch32": 151.3, "siglip-base-patch16-224": 203.2, "vilt-b32-finetuned-vqa": 87.4,
}  # fmt: skip
"""Millions of parameters."""


def _cost(config):
    family = family_of_config(config).family
    return cost_of_config(config, family, inputs_of_config(config, family))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_from_a_config(name):
    """Within 10 % of what was published."""
    assert _cost(known_models()[name]).parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_needed_grows_with_the_batch(name):
    cost = _cost(known_models()[name])
    assert cost.weight_bytes < cost.forward(1) < cost.forward(8)
    assert 4 * cost.weight_bytes < cost.training(1) < cost.training(8)
    assert cost.forward(8) < cost.training(8)


def test_a_config_without_sizes():
    """What was looked for is named."""
    with pytest.raises(SettingsError, match=r"of the type 'bert' does not say its sizes: none of vocab_size is"):
        _cost({"model_type": "bert"})
    with pytest.raises(SettingsError, match="hidden_size, d_model, n_embd"):
        _cost({"model_type": "bert", "vocab_size": 10})


def test_a_linear_layer_is_counted_exactly():
    """Weights, inputs and outputs of a forward pass; and of a training step what Adam keeps."""
    made = measure(lambda: nn.Linear(100, 1000), [Input(name="input", dtype="float32", shape=(100,))])
    weights = (100 * 1000 + 1000) * 4
    assert (made.cost.parameters, made.cost.weight_bytes) == (101_000, weights)
    assert made.cost.forward(8) == weights + 8 * 4 * (100 + 1000)
    assert 5 * weights <= made.cost.training(1) <= 6 * weights
    assert made.cost.flops_per_sample == 2 * 100 * 1000
    (output,) = made.outputs
    assert (output.dtype, output.shape) == ("float32", ((1, 0), (0, 1000)))


def test_no_weight_is_allocated():
    """400 GB would not fit."""
    made = measure(lambda: nn.Linear(1_000_000, 100_000), [Input(name="input", dtype="float32", shape=(1_000_000,))])
    assert made.cost.parameters == 100_000_100_000


def test_shared_weights_are_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.last = nn.Linear(8, 50, bias=False)
            self.last.weight = self.table.weight

        def forward(self, ids):
            return self.last(self.table(ids))

    made = measure(Tied, [Input(name="ids", dtype="int64", shape=(4,), below=50)])
    assert made.cost.weight_bytes == 50 * 8 * 4


def test_a_model_that_computes_with_values_when_it_is_made():
    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = [value.item() for value in torch.linspace(0, 1, 3)]
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) * self.rates[1]

    assert measure(Values, [Input(name="x", dtype="float32", shape=(4,))]).cost.parameters == 20


def test_outputs_are_told_by_name():
    one = torch.zeros(1)
    assert tensors_of(one).keys() == {"output"}
    assert tensors_of({"a": one, "b": [one, None, {"c": one}]}).keys() == {"a", "b.output_0", "b.output_2.c"}
