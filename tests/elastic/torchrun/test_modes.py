"""What mode=auto makes of a script (docs/decisions/0006-mode-auto.md)."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.torchrun.modes import num_workers_asked, resolve_mode, training_script
from dtf_lightning.elastic.torchrun.script_files import own_files


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("from dtf_lightning import ElasticCallback", "live"),
        ("import torch", "restart"),
        ("", "restart"),
        (b"\xff\xfe", "live"),
    ],
)
def test_auto(tmp_path, text, mode):
    """Restart for what can be read and does not name us, live for the rest."""
    script = tmp_path / "train.py"
    script.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert resolve_mode("auto", str(script)) == mode


@pytest.mark.parametrize(
    "files",
    [
        {"train.py": "from project.trainer import fit", "project/trainer.py": "from dtf_lightning import ElasticCallback"},
        {"train.py": "import project.trainer", "project/__init__.py": "", "project/trainer.py": "from . import callbacks",
         "project/callbacks.py": "import dtf_lightning"},
        {"train.py": "def main():\n    from helpers import fit", "helpers/__init__.py": "from .deep.er import fit",
         "helpers/deep/er.py": "from ..callbacks import fit", "helpers/callbacks.py": "import dtf_lightning"},
        {"train.py": "import one", "one.py": "import two", "two.py": "import one\nimport dtf_lightning"},
    ],
)  # fmt: skip
def test_what_the_script_imports_of_its_own(tmp_path, files):
    """A script that only imports what makes the callback is live, however deep, relative imports and circles included."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resolve_mode("auto", str(tmp_path / "train.py")) == "live"
    last = next(name for name, text in files.items() if "dtf_lightning" in text)
    (tmp_path / last).write_text("import torch, lightning, collections")
    assert resolve_mode("auto", str(tmp_path / "train.py")) == "restart"


def test_packages_are_not_looked_through(tmp_path):
    """What lies in site-packages, or comes with Python, is not the user's: Lightning's own files are not read."""
    script = tmp_path / "train.py"
    script.write_text("import lightning, torch, json, os.path")
    assert list(own_files(str(script))) == [script]


def test_a_configuration_names_the_callback(tmp_path):
    """LightningCLI's way: the callback's class stands in a file that the command line names."""
    script, configuration = tmp_path / "train.py", tmp_path / "fit.yaml"
    script.write_text("from lightning.pytorch.cli import LightningCLI")
    configuration.write_text("trainer: {callbacks: [{class_path: dtf_lightning.ElasticCallback}]}")
    assert resolve_mode("auto", str(script), ["fit", f"--config={configuration}"]) == "live"
    assert resolve_mode("auto", str(script), ["fit", "--config", str(configuration)]) == "live"
    assert resolve_mode("auto", str(script), ["fit"]) == "restart"


def test_a_module_is_found(tmp_path, monkeypatch):
    """`torchrun -m package.train`: the module's own files decide, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text("import torch")
    assert resolve_mode("auto", "package.train") == "restart"
    (tmp_path / "package" / "train.py").write_text("import dtf_lightning")
    assert resolve_mode("auto", "package.train") == "live"


@pytest.mark.parametrize("mode", ["live", "restart"])
def test_explicit(mode):
    """Said is said."""
    assert resolve_mode(mode, "") == mode


def test_unknown_script():
    """A module, or a launch by API: live, which stops a stock script with an error."""
    assert resolve_mode("auto", "") == resolve_mode("auto", "some.module") == "live"


@pytest.mark.parametrize(
    ("argv", "script"),
    [
        (["/usr/bin/torchrun", "--nnodes=1:4", "--rdzv-backend=etcd", "work/train.py", "--lr", "1"], "work/train.py"),
        (["/x/torch/distributed/run.py", "-m", "my.module"], "my.module"),
        (["/x/pytest", "train.py"], ""),
        ([], ""),
    ],
)
def test_training_script(argv, script):
    """As torchrun's own parser reads the command line."""
    assert training_script(argv) == script


@pytest.mark.parametrize(
    ("argv", "num_workers"),
    [
        (["/usr/bin/torchrun", "--nproc-per-node=2", "train.py"], 2),
        (["/usr/bin/torchrun", "train.py"], 1),
        (["/x/pytest", "train.py"], 1),
    ],
)
def test_number_of_workers(argv, num_workers):
    """As torchrun counts them; one where something else starts the agent."""
    assert num_workers_asked(argv) == num_workers
