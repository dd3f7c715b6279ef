"""Generated tests are run: each passes on a model that is right, and reports what the farm's results read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import lightning  # noqa: F401 - it sets an environment variable, once for all tests
import pytest

from dtf_lightning import environment
from dtf_lightning.farm.generate.generate import generate_tests
from dtf_lightning.farm.worker.results import collect

pytestmark = pytest.mark.process
MODELS = Path(__file__).with_name("small_models.py")


def run(*arguments, variables=None):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        env=environment.for_child({"OMP_NUM_THREADS": "1", **(variables or {})}, without_prefix="TORCHELASTIC_"),
    )


def test_of_right_models_and_of_a_wrong_one(tmp_path, monkeypatch):
    """All in one run. The wrong one has other outputs than when its tests were written, not the same twice, not finite."""
    shutil.copy(MODELS, tmp_path)
    wrong = tmp_path / "wrong.py"
    shutil.copy(MODELS, wrong)
    monkeypatch.chdir(tmp_path)
    quick = ["shapes", "determinism", "precision", "training", "latency", "memory"]
    generate_tests(f"{MODELS.name}:TinyNet", ["cpu", "mps"], checks=quick)
    generate_tests(f"{MODELS.name}:TinyModule", checks=["shapes", "training"])
    generate_tests("wrong.py:TinyNet", checks=["shapes", "determinism"], name="wrong")
    wrong.write_text(wrong.read_text().replace('"norm": x.norm(dim=1)', '"other": torch.rand(2), "huge": x / 0'))
    results = tmp_path / "results"
    results.mkdir()
    variables = {"MODEL_DEVICES": "cpu", "DTF_FARM_RESULTS": str(results)}
    done = run("generated", "--junitxml", tmp_path / "junit.xml", variables=variables)
    assert done.returncode == 1, done.stdout
    cases = {
        (case.get("classname").rpartition(".")[2], case.get("name").partition("[")[0]): {child.tag for child in case}
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    }
    failed = {case for case, tags in cases.items() if tags & {"failure", "error"}}
    assert failed == {
        ("test_wrong_shapes", "test_shapes_and_dtypes"),
        ("test_wrong_shapes", "test_all_values_are_finite"),
        ("test_wrong_determinism", "test_the_same_model_twice"),
    }, done.stdout
    assert {name for (_, name), tags in cases.items() if "skipped" not in tags} >= {
        "test_two_models_of_one_seed", "test_errors_stay_small", "test_the_loss_falls_on_one_batch",
        "test_a_few_steps", "test_latency_and_throughput",
    }  # fmt: skip
    metrics = collect(results, tmp_path, (), tmp_path / "index").metrics
    assert metrics["latency.tiny_net.cpu.float32.b1"] > 0
    assert metrics["throughput.tiny_net.cpu.bfloat16.b4"] > 0


@pytest.mark.generated
def test_of_the_exports_of_a_torch_module(tmp_path, monkeypatch):
    """ONNX where it is installed."""
    shutil.copy(MODELS, tmp_path)
    monkeypatch.chdir(tmp_path)
    generate_tests(f"{MODELS.name}:TinyNet", checks=["export", "onnx"])
    done = run("generated", "-q")
    assert done.returncode == 0, done.stdout


@pytest.mark.generated
def test_the_rescale_of_a_lightning_module(tmp_path, monkeypatch):
    """Real torchrun nodes, one of which joins and leaves."""
    shutil.copy(MODELS, tmp_path)
    monkeypatch.chdir(tmp_path)
    generate_tests(f"{MODELS.name}:TinyModule", checks=["rescale"])
    done = run("generated", "-q")
    assert done.returncode == 0, done.stdout


@pytest.mark.generated
@pytest.mark.parametrize(
    "config",
    [
        {
            "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 500, "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64,
        },
        {
            "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 500, "d_model": 64, "d_kv": 16,
            "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
        },
        {
            "architectures": ["ResNetForImageClassification"], "model_type": "resnet", "embedding_size": 16,
            "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "num_channels": 3,
        },
    ],
    ids=["bert", "t5", "resnet"],
)  # fmt: skip
def test_of_configs_of_transformers(tmp_path, monkeypatch, config):
    """With transformers, onnx, onnxscript and onnxruntime, where they are installed."""
    pytest.importorskip("transformers", reason="pip install 'dtf-lightning[generate]'")
    monkeypatch.chdir(tmp_path)
    Path("small.json").write_text(json.dumps(config))
    made = generate_tests("small.json")
    assert made.model.outputs
    done = run(made.folder, "-q")
    assert done.returncode == 0, done.stdout
