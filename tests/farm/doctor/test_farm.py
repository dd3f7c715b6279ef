"""What `dtf farm doctor` says of what is wrong, and what to do."""

from __future__ import annotations

import os
import shutil
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from dtf_lightning import __version__
from dtf_lightning.farm.doctor import farm as doctor
from dtf_lightning.farm.doctor.farm import (
    check_clock,
    check_coordinator,
    check_disk,
    check_etcd,
    check_home,
    check_token,
)
from dtf_lightning.farm.doctor.findings import Level
from dtf_lightning.farm.settings.coordinator import SKEW
from dtf_lightning.farm.tokens import make_token


def one(findings):
    (finding,) = findings
    return finding


def test_a_home_that_others_may_look_into(tmp_path):
    home = tmp_path / "home"
    assert one(check_home(home)).level is Level.GOOD  # no farm was started here
    home.mkdir(mode=0o755)
    found = one(check_home(home))
    assert (found.level, found.remedy) == (Level.WARNING, f"chmod 700 {home}")
    home.chmod(0o700)
    assert one(check_home(home)).level is Level.GOOD


def test_a_token(tmp_path):
    path = tmp_path / "token"
    found = one(check_token(path))
    assert (found.level, found.remedy) == (Level.BAD, "copy it from the farm's home, or give --token-file")
    make_token(path)
    assert one(check_token(path)).level is Level.GOOD
    path.chmod(0o640)
    found = one(check_token(path))
    assert (found.level, found.remedy) == (Level.BAD, f"chmod 600 {path}")


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 29, Level.WARNING), (2 << 30, Level.WARNING), (50 << 30, Level.GOOD)]
)
def test_a_disk(tmp_path, monkeypatch, free, level):
    """Below a GiB, or below a twentieth; looked at also before the folder is made."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=100 << 30))
    found = one(check_disk(tmp_path / "not" / "yet"))
    assert found.level is level
    assert f"GiB are free at {tmp_path}" in found.told


@pytest.mark.parametrize(
    ("apart", "level"),
    [(0.0, Level.GOOD), (-4.0, Level.GOOD), (20.0, Level.WARNING), (-SKEW - 60, Level.BAD), (SKEW + 60, Level.BAD)],
)
def test_clocks(apart, level):
    found = one(check_clock("http://c", formatdate(1e9, usegmt=True), 1e9 + apart))
    assert found.level is level
    if level is not Level.GOOD:
        assert ("ahead of" if apart > 0 else "behind") in found.told
        assert "NTP" in found.remedy
    assert list(check_clock("http://c", None, 1e9)) == []
    assert list(check_clock("http://c", "no date", 1e9)) == []


def test_a_coordinator():
    good = {"version": __version__, "leader": "c0", "workers": 1}
    assert one(check_coordinator("http://c", good)).level is Level.GOOD
    old, leader, workers = check_coordinator("http://c", {"version": "0.0.1", "leader": "", "workers": 0})
    assert (old.level, leader.level, workers.level) == (Level.WARNING, Level.BAD, Level.WARNING)
    assert "it runs dtf-lightning 0.0.1" in old.told
    assert "nobody leads" in leader.told


def member(version, name="e1"):
    return {"endpoint": name, "version": version, "leads": True}


def told(etcd):
    return [(finding.level, finding.told) for finding in check_etcd(etcd) if finding.level is not Level.GOOD]


@pytest.mark.parametrize(
    ("version", "defects"),
    [
        ("3.5.1", ["#13766", "CVE-2026-33343"]),
        ("3.5.2", ["#13766", "CVE-2026-33343"]),
        ("3.5.3", ["when a member crashes", "CVE-2026-33343"]),
        ("3.5.27", ["CVE-2026-33343"]),
        ("3.5.28", []),
        ("3.4.23", ["CVE-2026-33343"]),
        ("3.4.42", []),
        ("3.6.8", ["CVE-2026-33343"]),
        ("3.6.9", []),
        ("3.7.0", []),
        ("memory", []),
    ],
)
def test_versions_of_etcd(version, defects):
    found = told({"members": [member(version)]})
    assert len(found) == len(defects)
    for (level, text), defect in zip(found, defects, strict=True):
        assert level is Level.WARNING
        assert defect in text


def test_a_quorum():
    """One of three away is a warning with its name; two are the end of the quorum."""
    members = [member("3.5.28", f"e{number}") for number in range(3)]
    assert told({"members": members}) == []
    assert told({"members": members[:2], "unreachable": {"e2": "refused"}}) == [
        (Level.WARNING, "2 of 3 members answer; missing: e2")
    ]
    assert told({"members": members[:1], "unreachable": {"e1": "x", "e2": "x"}}) == [
        (Level.BAD, "1 of 3 members answer, 2 are the quorum")
    ]


@pytest.mark.parametrize(
    ("etcd", "level"),
    [
        ({"alarm": True, "refuses": "etcd has raised its alarm"}, Level.BAD),
        ({"refuses": "three quarters full"}, Level.BAD),
        ({"ids": "set retention.tombstones"}, Level.WARNING),
    ],
)
def test_the_size_of_etcd(etcd, level):
    ((found, _),) = told({"members": [member("3.5.28")], **etcd})
    assert found is level


def test_etcd_that_does_not_answer():
    assert told({"problem": "no member of etcd answered"}) == [(Level.BAD, "no member of etcd answered")]


@pytest.mark.process
def test_of_a_farm_that_is_not_there(tmp_path, monkeypatch):
    """Nothing of it raises; a coordinator that does not answer is told with what to do."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("DTF_FARM_HOME", str(home))
    assert [finding.what for finding in doctor.examine() if finding.level is Level.BAD] == ["address"]
    make_token(home / "token")
    monkeypatch.setattr(doctor, "PATIENCE", 0.0)
    (bad,) = (finding for finding in doctor.examine("http://127.0.0.1:1") if finding.level is Level.BAD)
    assert bad.what == "coordinator http://127.0.0.1:1"
    assert "start it (`dtf farm up`" in bad.remedy
    assert os.listdir(home) == ["token"]
