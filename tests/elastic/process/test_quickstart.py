"""README's quickstart, taken from its text."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEADLINE = 240.0
"""Seconds for two nodes to import, to meet and to train three epochs; 30 on an idle machine."""

pytestmark = pytest.mark.process


def quickstart() -> list[str]:
    """The torchrun line, split as a shell would."""
    [line] = re.findall(r"^torchrun .*examples/digits\.py.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_two_nodes_train(etcd, tmp_path, name):
    """The line of the README, started twice: both end with exit code 0, and the model has learnt the digits.

    Only what a test must choose for itself is replaced: etcd's port, the run's id, the number of epochs, the folder; and
    in the example, for the other name of Lightning, its imports.
    """
    command = quickstart()
    if name == "pytorch_lightning":
        example = tmp_path / "digits.py"
        text = (ROOT / "examples/digits.py").read_text()
        example.write_text(text.replace("lightning.pytorch", name).replace("import lightning as", f"import {name} as"))
        command[command.index("examples/digits.py")] = str(example)
    assert command[0] == "torchrun"
    command[0:1] = [sys.executable, "-m", "torch.distributed.run"]
    at_etcd = command.index("--rdzv-endpoint=127.0.0.1:2379")
    command[at_etcd] = f"--rdzv-endpoint={etcd.endpoint}"
    at_id = command.index("--rdzv-id=run7")
    command[at_id] = f"--rdzv-id=quickstart-{uuid.uuid4().hex}"
    command[command.index("--epochs") + 1] = "3"
    command += ["--folder", str(tmp_path / "runs")]
    outputs = [tmp_path / f"{name}.log" for name in "ab"]
    nodes = []
    try:
        for output in outputs:
            with output.open("wb") as file:
                nodes.append(
                    subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
                )
        codes = [node.wait(DEADLINE) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.kill()
                node.wait(30)
    printed = [output.read_text() for output in outputs]
    assert codes == [0, 0], printed
    [accuracy] = re.findall(r"validation accuracy: (\d\.\d+)", "".join(printed))  # rank 0's, once
    assert float(accuracy) > 0.9
