"""What mode=auto makes of a script (docs/decisions/0006-mode-auto.md)."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.torchrun.modes import num_workers_asked, resolve_mode, training_script


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
