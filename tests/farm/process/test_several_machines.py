"""What docs/farm.md says to type for a farm on several machines, typed: with TLS on every wire, that to etcd too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtf_lightning import environment
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.farm.worker.offer import keep_profile
from support.certificates import Authority
from support.farm.running import running
from support.farm.whole import DEADLINE, DTF, PROFILE
from support.pages import blocks

pytestmark = pytest.mark.process


@pytest.fixture
def etcd(tmp_path):
    """Wants a client certificate; the fixture is the endpoint, and the words that say with which files it is reached."""
    folder = tmp_path / "etcd"
    folder.mkdir()
    authority = Authority(folder)
    server, client = authority.issue("server"), authority.issue("client")
    flags = ("--cert-file", str(server.cert), "--key-file", str(server.key))
    flags += ("--client-cert-auth", "--trusted-ca-file", str(authority.path))
    with EtcdCluster(1, extra=flags, scheme="https") as cluster:
        yield (
            f"https://{cluster.endpoint}",
            f"--ca-cert {authority.path} --cert {client.cert} --key {client.key}",
        )


def test_the_docs_lines(tmp_path, etcd):
    """Only etcd, the port, and the name of the machine are the test's own."""
    endpoint, certificates = etcd

    def typed(text, port):
        own = {
            "127.0.0.1:2379": f"{endpoint} {certificates}",
            "farm.lab": "localhost",
            "8080": port,
            "dtf farm": f"exec {' '.join(DTF)} farm",
        }
        for told, meant in own.items():
            text = text.replace(told, meant)
        return text.strip()

    made, coordinator, *others = blocks("docs/farm.md", "sh", "## On several machines")[:4]
    keep_profile(tmp_path / "home" / "workers" / "w1", PROFILE)
    fields = {
        "cwd": tmp_path,
        "env": {
            **environment.for_child({environment.FARM_HOME: str(tmp_path / "home")}, without_prefix="DTF_"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    }
    for line in typed(made, "").splitlines():
        subprocess.run(line, shell=True, check=True, capture_output=True, timeout=DEADLINE, **fields)
    with running(typed(coordinator, "0"), "https://localhost:", **fields) as told:
        worker, used = (typed(text, re.search(r"https://localhost:(\d+)", told)[1]) for text in others)
        with running(worker, "worker w1 offers", **fields):
            done = subprocess.run(used, shell=True, capture_output=True, text=True, timeout=DEADLINE, **fields)
            assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
