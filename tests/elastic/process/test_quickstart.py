"""README's quickstart, taken from its text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DEADLINE = 600.0
"""Seconds for two nodes to import, to meet and to train three epochs; 30 on an idle machine."""

pytestmark = pytest.mark.process


def quickstart() -> list[str]:
    """The torchrun line, split as a shell would."""
    [line] = re.findall(r"^torchrun .*examples/digits\.py.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_two_nodes_train(etcd, fork_server, tmp_path, monkeypatch, name):
    """The line of the README, started twice: both end with exit code 0, and the model has learnt the digits.

    With the old name of Lightning they are executed, as by a user's shell; with the new one forked, their imports made.
    Only what a test must choose for itself is replaced: etcd's port, the run's id, the number of epochs, the folder; and
    in the example, for the old name, its imports.
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
    monkeypatch.chdir(ROOT)
    nodes: list[Any] = []
    try:
        for output in outputs:
            with output.open("wb") as file:
                if name == "lightning":
                    nodes.append(fork_server.start(command[1:], os.environ, file.fileno()))
                else:
                    nodes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file))
        codes = [node.wait(DEADLINE) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.kill()
                node.wait(DEADLINE)
    printed = [output.read_text() for output in outputs]
    assert codes == [0, 0], printed
    [accuracy] = re.findall(r"validation accuracy: (\d\.\d+)", "".join(printed))  # rank 0's, once
    assert float(accuracy) > 0.9
