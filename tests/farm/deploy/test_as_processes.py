"""The Compose file's farm as plain processes: its command lines, its settings, and what its README says to type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dtf_lightning import environment
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.farm.deploy.files import write_files
from dtf_lightning.farm.deploy.render import render_target
from dtf_lightning.farm.worker.offer import keep_profile
from support.farm.deployed import wanted
from support.farm.running import running
from support.farm.whole import DEADLINE, DTF, PROFILE

pytestmark = pytest.mark.process


def test_compose(tmp_path):
    """Only where things lie, the machine's name and the port are the test's own."""
    folder = tmp_path / "out"

    def own(text, port="0"):
        meant = {
            "/run/secrets": f"{folder}/secrets",
            "/etc/dtf-farm": str(folder),
            "/var/lib/dtf-farm": f"{tmp_path}/state",
            "coordinator-1": "localhost",
            "8080": port,
        }
        for told, here in meant.items():
            text = text.replace(told, here)
        return text

    def mine(name, port="0"):
        path = folder / name
        text = re.sub("  advertise: .*\n", "", path.read_text())  # port 0 is no address
        path.write_text(own(text, port))

    with EmbeddedEtcd() as etcd:
        write_files(folder, render_target("docker", wanted(coordinators=1, etcd=(etcd.endpoint,), workers=({},))))
        services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        setup, _, join = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        fields = {
            "cwd": folder,
            "env": {
                **environment.for_child({environment.FARM_HOME: str(tmp_path / "home")}, without_prefix="DTF_"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        }

        def process(service, say):
            told = services[service]
            env = {**fields["env"], **{name: own(value) for name, value in told.get("environment", {}).items()}}
            words = ["exec", *DTF, *(own(word) for word in told["command"])]
            return running(" ".join(words), say, cwd=folder, env=env)

        subprocess.run(own(setup), shell=True, check=True, capture_output=True, timeout=DEADLINE, **fields)
        mine("coordinator.yaml")
        with process("coordinator-1", "https://localhost:") as line:
            port = re.search(r"https://localhost:(\d+)", line)[1]
            command = own(join.splitlines()[0].removeprefix("sudo "), port)
            made = subprocess.run(command, shell=True, check=True, capture_output=True, timeout=DEADLINE, **fields)
            (folder / "secrets" / "join.token").write_bytes(made.stdout)
            mine("worker.yaml", port)
            keep_profile(tmp_path / "state" / "worker", PROFILE)
            with process("worker", "offers"):
                reach = f"--farm https://localhost:{port} --ca certificates/ca.pem --token-file secrets/token"
                used = f"dtf farm run --no-source {reach} -- python3 -c 'print(6 * 7)'"
                done = subprocess.run(used, shell=True, capture_output=True, text=True, timeout=DEADLINE, **fields)
                assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
