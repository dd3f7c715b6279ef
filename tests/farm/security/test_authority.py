"""`dtf farm cert`: what it makes holds what was asked for, is private, and is never overwritten."""

from __future__ import annotations

import datetime as dt
import stat

import pytest
from cryptography import x509

from dtf_lightning.cli.main import run
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli import commands
from dtf_lightning.farm.security.authority import issue, make_authority
from dtf_lightning.farm.security.certificates import Certificate, TlsFiles, server_context
from support.farm.certificates import Lab

NOW = dt.datetime(2026, 11, 28, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab") / "certificates")


def modes(folder):
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in [folder, *folder.iterdir()]}


def test_from_the_command_line(tmp_path, capsys):
    """Its owner's alone; with the hosts that were named, or the name itself; its life is said."""
    folder = tmp_path / "certificates"
    here = ["--folder", str(folder)]

    def cert(*words):
        return run(["farm", "cert", *words, *here], [commands.register])

    assert cert("init") == 0
    assert cert("issue", "c1", "--host", "c1.lab", "--host", "10.0.0.5", "--host", "fd00::5", "--days", "30") == 0
    assert cert("issue", "c2.lab", "c3.lab") == 0
    assert cert("issue", "w1", "--client") == 0
    names = [f"{name}.{kind}" for name in ("ca", "c1", "c2.lab", "c3.lab", "w1") for kind in ("pem", "key")]
    assert modes(folder) == {"certificates": "0o700"} | dict.fromkeys(names, "0o600")
    assert Certificate.read(folder / "c1.pem").names == ("c1", "c1.lab", "10.0.0.5", "fd00::5")
    assert Certificate.read(folder / "c2.lab.pem").names == ("c2.lab",)
    until = dt.datetime.fromtimestamp(Certificate.read(folder / "c1.pem").until, dt.UTC)
    said = capsys.readouterr().out
    assert f"for c1, c1.lab, 10.0.0.5, fd00::5, good until {until:%Y-%m-%d}" in said
    assert "w1.pem for a client" in said
    before = (folder / "c1.pem").read_bytes()
    assert cert("init") == 2
    assert cert("issue", "c1") == 2
    assert cert("issue", "w1", "--client", "--host", "a") == 2
    assert cert("issue", "a", "b", "--host", "a") == 2
    refused = capsys.readouterr().err
    assert "is not overwritten" in refused
    assert all(line.startswith(("dtf farm cert init: ", "dtf farm cert issue: ")) for line in refused.splitlines())
    assert (folder / "c1.pem").read_bytes() == before
    assert cert("issue", "c1", "--replace") == 0
    assert (folder / "c1.pem").read_bytes() != before
    assert modes(folder)["c1.key"] == "0o600"


def test_for_one_purpose_each(lab):
    """A client's certificate serves no host, a coordinator's is no client's, and neither signs others."""
    server, client = lab.issue("s"), lab.issue("c", client=True)
    for made, kind in ((server, "serverAuth"), (client, "clientAuth")):
        told = x509.load_pem_x509_certificate(made.cert.read_bytes())
        usage = told.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [one._name for one in usage] == [kind]
        assert not told.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not told.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        server_context(TlsFiles(cert=made.cert, key=made.key))
    assert Certificate.read(client.cert).names == ()


def test_no_longer_than_its_authority(tmp_path):
    folder = tmp_path / "certificates"
    authority = make_authority(folder, name="lab", days=10, now=NOW)
    made = issue(folder, "a", hosts=["a"], client=False, days=1000, now=NOW)
    assert made.until == authority.until == NOW + dt.timedelta(days=10)


@pytest.mark.parametrize(
    ("name", "hosts", "days", "told"),
    [
        ("../a", ["a"], 1, "cannot name a certificate"),
        ("ca", ["a"], 1, "cannot name a certificate"),
        ("a", ["a b"], 1, "neither a host's name nor an IP address"),
        ("a", ["https://a"], 1, "neither a host's name nor an IP address"),
        ("a", [""], 1, "neither a host's name nor an IP address"),
        ("a", ["a"], 0, "a number above 0"),
        ("a", ["a"], 1e12, "cannot be good for 1e"),
        ("a", ["a"], float("nan"), "cannot be good for nan"),
    ],
)
def test_what_cannot_be(lab, name, hosts, days, told):
    with pytest.raises(SettingsError, match=told):
        issue(lab.folder, name, hosts=hosts, client=False, days=days, now=NOW)
    assert not (lab.folder / "a.pem").exists()


def test_without_an_authority(tmp_path, lab):
    with pytest.raises(SettingsError, match=r"there is no authority in .*`dtf farm cert init`"):
        issue(tmp_path, "a", hosts=["a"], client=False, days=1, now=NOW)
    made = lab.issue("leaf")
    for name, path in (("ca.pem", made.cert), ("ca.key", made.key)):
        (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(SettingsError, match="is no authority that"):
        issue(tmp_path, "a", hosts=["a"], client=False, days=1, now=NOW)
    (tmp_path / "ca.key").write_bytes((lab.folder / "ca.key").read_bytes())
    with pytest.raises(SettingsError, match="is not the key of"):
        issue(tmp_path, "a", hosts=["a"], client=False, days=1, now=NOW)


def test_a_folder_that_others_may_look_into(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(SettingsError, match="chmod 700"):
        make_authority(tmp_path, name="lab", days=1, now=NOW)
