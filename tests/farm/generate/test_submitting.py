"""Generated tests are submitted with this folder's files: a real coordinator, on the in-memory store."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning  # noqa: F401 - it sets an environment variable, once for all tests
import pytest

from dtf_lightning import farm
from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from support.farm.server import CoordinatorInThread

MODELS = Path(__file__).with_name("small_models.py")


@pytest.fixture
def coordinator(tmp_path):
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path / "farm")
    yield coordinator
    coordinator.stop()
    store.close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "farm").mkdir()
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(MODELS, folder)
    monkeypatch.chdir(folder)
    return folder


def test_from_python_and_by_the_command(coordinator, capsys):
    """The plan's tasks are there with their needs, behind what they come after; once more under another project."""
    with coordinator.client() as client:
        submitted = farm.generate_and_submit_tests(
            f"{MODELS.name}:TinyNet", ["cpu", "cuda"], [1, 4, 16], farm=client, checks=["shapes", "latency"]
        )
        tasks = {task.raw["name"]: task for task in client.tasks(plan=submitted.plan_id)}
        assert tasks.keys() == {"shapes-cpu", "latency-cpu", "shapes-cuda", "latency-cuda"}
        assert tasks["latency-cuda"].raw["dependencies"] == [tasks["shapes-cuda"].task_id]
        assert tasks["latency-cuda"].raw["status"] == "waiting"
        assert tasks["latency-cuda"].raw["priority"] < tasks["shapes-cuda"].raw["priority"]
        arguments = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        command = [
            "farm",
            "generate",
            f"{MODELS.name}:TinyNet",
            "--checks",
            "shapes",
            "--submit",
            "--project",
            "models",
        ]
        assert main(["farm", "project", "set", "models", "--weight", "1", *arguments]) == 0
        assert main([*command, *arguments]) == 0
        plan_id = capsys.readouterr().out.splitlines()[-1]
        (task,) = client.tasks(plan=plan_id)
        assert task.raw["metadata"]["project"] == "models"


def test_tests_that_workers_would_not_get(coordinator, folder, tmp_path):
    with coordinator.client() as client:
        with pytest.raises(SettingsError, match="give an --output below it"):
            farm.generate_and_submit_tests(
                f"{MODELS.name}:TinyNet", farm=client, checks=["shapes"], output=tmp_path / "elsewhere"
            )
        (folder / ".dtfignore").write_text("generated\n")
        with pytest.raises(SettingsError, match=r"generated/tiny_net/conftest.py is ignored by git or \.dtfignore"):
            farm.generate_and_submit_tests(f"{MODELS.name}:TinyNet", farm=client, checks=["shapes"])
        assert list(client.tasks()) == []
