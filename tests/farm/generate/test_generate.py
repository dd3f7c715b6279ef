"""From a model to a folder of tests: its text, its plan, and what cannot be tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning  # noqa: F401 - it sets an environment variable, once for all tests
import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.generate import generate_tests
from dtf_lightning.farm.generate.sources import describing
from dtf_lightning.farm.plans.reading import read_plan

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
MODELS = "small_models.py"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """With a file of models, where the tests are written."""
    shutil.copy(HERE / MODELS, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setattr(describing, "is_installed", lambda package: package not in ("transformers", "timm"))


@pytest.mark.parametrize(
    ("name", "given", "devices"),
    [
        ("tiny_net", f"{MODELS}:TinyNet", ["cpu", "cuda"]),
        ("tiny_module", f"{MODELS}:TinyModule", ["cpu"]),
        ("bert_base_uncased", "bert-base-uncased", ["cpu"]),
    ],
)
def test_the_text_is_the_golden_one(name, given, devices, without_transformers):
    """To write it anew: copy the folder that this test names. Equal models give equal text, whatever the machine."""
    made = generate_tests(given, devices)
    assert made.folder == Path("generated") / name
    written = {file: (made.folder / file).read_text() for file in made.files}
    golden = {path.name.removesuffix(".txt"): path.read_text() for path in (GOLDEN / name).iterdir()}
    assert written.keys() == golden.keys(), made.folder.resolve()
    for file, text in written.items():
        assert text == golden[file], made.folder.resolve() / file


def test_the_plan_is_one_that_the_farm_takes():
    """Each check on each device on which it says something, with its needs, behind what it comes after."""
    made = generate_tests(
        f"{MODELS}:TinyNet", ["cpu", "cuda"], [2, 8], checks=["shapes", "precision", "latency", "reference"]
    )
    plan = read_plan(str(made.plan))
    tasks = {task.name: task for task in plan.tasks}
    assert [*tasks] == [task.name for task in made.tasks]
    assert {*tasks} == {
        "shapes-cpu", "shapes-cuda", "precision-cpu", "precision-cuda", "latency-cpu", "latency-cuda", "reference-cuda",
    }  # fmt: skip
    assert plan.after["precision-cuda"] == ("shapes-cuda",)
    (need,) = tasks["latency-cuda"].needs
    assert need.exclusive
    assert need.amounts["gpu"] == 1
    assert need.labels == ("nvidia",)
    assert tasks["latency-cuda"].environment == {"MODEL_DEVICES": "cuda"}
    assert tasks["shapes-cpu"].priority > tasks["latency-cpu"].priority
    assert tasks["shapes-cpu"].command[-1] == "generated/tiny_net/test_tiny_net_shapes.py"


def test_a_file_that_was_changed_is_left_alone():
    made = generate_tests(f"{MODELS}:TinyNet")
    assert made.kept == ()
    path = made.folder / "test_tiny_net_shapes.py"
    path.write_text(path.read_text() + "\n# mine\n")
    again = generate_tests(f"{MODELS}:TinyNet", ["cuda"])
    assert again.kept == (path.name,)
    assert path.read_text().endswith("# mine\n")
    assert "cuda" in (made.folder / "conftest.py").read_text()
    assert generate_tests(f"{MODELS}:TinyNet", force=True).kept == ()
    assert "# mine" not in path.read_text()


def test_inputs_are_found_out():
    """By the first layer, of which the first shape that fits is taken; and by what is said."""
    (image,) = generate_tests(f"{MODELS}:Picture").model.inputs
    assert (image.name, image.dtype, image.shape) == ("image", "float32", (1, 8, 8))
    words = generate_tests(f"{MODELS}:Words").model
    assert (words.inputs[0].dtype, words.inputs[0].below) == ("int64", 100)
    assert words.family.family.value == "text-encoder"
    said = ["left=float32[2,3]", "right=float32[3,4]"]
    two = generate_tests(f"{MODELS}:TakesTwo", inputs=said, family="feed-forward", name="two").model
    assert two.outputs[0].shape == ((1, 0), (0, 2), (0, 4))
    assert (two.name, two.family.confidence) == ("two", 1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (f"{MODELS}:NeedsSize", r"needs the arguments size: write a function .*return NeedsSize\(size=\.\.\.\)"),
        (f"{MODELS}:TinyNett", "has no 'TinyNett'; did you mean 'TinyNet'"),
        (f"{MODELS}:number", "is int and no class or function"),
        (f"{MODELS}:broken", "cannot be made: RuntimeError: no model today"),
        (f"{MODELS}:TakesTwo", r"takes left, right: say what each is.*--input 'left=float32\[3,224,224\]'"),
        ("nobody.knows:It", "nobody.knows cannot be imported: ModuleNotFoundError"),
        ("nothing.py:It", "there is no file nothing.py"),
        ("nothing.json", "cannot be read: No such file"),
        (
            "bert-base-uncase",
            r"is not known; did you mean 'bert-base-uncased'\?\ntried: a file or folder.*transformers is not",
        ),
        ("xyz", r"the model 'xyz' is not known\ntried: "),
        ("bert", "needs transformers, which is not installed here: pip install transformers"),
    ],
)
def test_what_cannot_be_tested_is_told(given, told, without_transformers):
    """Nothing is written then."""
    with pytest.raises(SettingsError, match=f"(?s){told}"):
        generate_tests(given)
    assert not Path("generated").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "is no config of transformers"),
        ('{"a": 1}', "is no config of transformers: it has neither"),
        ('{"model_type": "bret"}', r"`model_type` is 'bret'; did you mean 'bert'\?\); say what it is by --family"),
        ('{"model_type": "bert"}', "does not say its sizes: none of vocab_size"),
        (
            '{"model_type": "informer"}',
            "what a model of the type 'informer' .* is given is not known: say it by --input",
        ),
    ],
)
def test_a_config_that_does_not_say_enough(config, told, without_transformers):
    Path("config.json").write_text(config)
    with pytest.raises(SettingsError, match=told):
        generate_tests("config.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hardware_types": ["gpu"]}, "'gpu' is no device"),
        ({"batch_sizes": [0]}, "a batch size is a whole number of samples, 1 or more; got 0"),
        ({"batch_sizes": []}, "one batch size"),
        ({"precisions": ["float8"]}, "'float8' is no precision"),
        ({"family": "visoin"}, "'visoin' is no family; did you mean 'vision'"),
        ({"inputs": ["x=float32"]}, "--input x=float32: expected NAME=DTYPE"),
        ({"inputs": ["x=float32[7]"]}, r"(?s)does not take what was tried.*x=float32\[7\]: RuntimeError"),
        ({"checks": ["rescale"]}, "the check 'rescale' cannot be made.*it is no Lightning module"),
    ],
)
def test_options_that_cannot_work(options, told):
    with pytest.raises(SettingsError, match=told):
        generate_tests(f"{MODELS}:TinyNet", **options)


def test_onnx_and_what_it_needs(monkeypatch):
    """Without onnx it is named with its command; a file that is none is told."""
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingsError, match="pip install onnx onnxruntime"):
        generate_tests("model.onnx")


def test_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DTF_FARM_HOME", str(tmp_path / "home"))
    arguments = ["farm", "generate", f"{MODELS}:TinyNet", "--checks", "shapes", "memory", "--batch-sizes", "1", "2"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == {"name": "feed-forward", "rule": "it has 2 Linear", "confidence": 0.6}
    assert [task["name"] for task in told["tasks"]] == ["shapes-cpu", "memory-cpu"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "feed-forward (60% sure), because it has 2 Linear" in shown
    assert "dtf farm run generated/tiny_net/plan.yaml" in shown
    assert main(["farm", "generate", "nobody-knows"]) == 2
    assert "the model 'nobody-knows' is not known" in capsys.readouterr().err
    assert main(["farm", "generate"]) == 2
    capsys.readouterr()
    assert main(["farm", "generate", "--list-templates", "--json"]) == 0
    assert "test_shapes.py" in {row["id"] for row in json.loads(capsys.readouterr().out)}
