"""What may be written as an endpoint, and what is said about the rest."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.endpoints import parse_endpoints


@pytest.mark.parametrize(
    ("text", "targets", "secure"),
    [
        ("etcd-1", ["etcd-1:2379"], None),
        ("etcd-1:4001", ["etcd-1:4001"], None),
        ("127.0.0.1:2379,127.0.0.1:2380", ["127.0.0.1:2379", "127.0.0.1:2380"], None),
        (" a , b:1 ,, a", ["a:2379", "b:1"], None),
        ("http://etcd-1", ["etcd-1:2379"], False),
        ("https://etcd-1:443/", ["etcd-1:443"], True),
        ("https://a,https://b", ["a:2379", "b:2379"], True),
        ("[::1]", ["[::1]:2379"], None),
        ("http://[fd00::7]:4001", ["[fd00::7]:4001"], False),
        ("unix:/run/etcd.sock", ["unix:/run/etcd.sock"], None),
        ("unix:///run/etcd.sock", ["unix:/run/etcd.sock"], None),
        ("unix:relative:1,etcd-2", ["unix:relative:1", "etcd-2:2379"], None),
        ("https://a,unix:/run/etcd.sock", ["a:2379", "unix:/run/etcd.sock"], True),
    ],
)
def test_good(text: str, targets: list[str], secure: bool | None):
    endpoints = parse_endpoints(text)
    assert [address.target for address in endpoints.addresses] == targets
    assert endpoints.secure is secure
    assert str(endpoints) == ",".join(targets)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no etcd endpoint given"),
        (" , ", "no etcd endpoint given"),
        (":2379", "the host is missing"),
        ("http://", "the host is missing"),
        ("unix:", "the path of the socket is missing"),
        ("unix://", "the path of the socket is missing"),
        ("etcd:port", "'etcd:port' cannot be used: Port could not be cast"),
        ("etcd:70000", "'etcd:70000' cannot be used: Port out of range"),
        ("etcd:0", "port 0 cannot be connected to"),
        ("ftp://etcd", "unknown scheme 'ftp'"),
        ("http://etcd:2379/v3", "nothing may follow the port, got '/v3'"),
        ("etcd:2379?x=1", "nothing may follow the port, got '?x=1'"),
        ("::1", "an IPv6 address needs brackets"),
        ("two words:1", "the host holds a blank"),
        ("http://a,https://b", "mix http and https"),
        ("a,https://b", "mix no scheme and https"),
        ("good,bad:x", "'bad:x' cannot be used"),
    ],
)
def test_bad(text: str, told: str):
    with pytest.raises(SettingsError) as caught:
        parse_endpoints(text)
    assert told in str(caught.value)


def test_a_password_in_an_endpoint_is_not_repeated():
    with pytest.raises(SettingsError, match="holds a user name or password") as caught:
        parse_endpoints("http://root:hunter2@etcd")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        ("127.0.0.1", True),
        ("localhost:1,[::1]:2", True),
        ("unix:/tmp/etcd.sock", True),
        ("127.0.0.1,10.0.0.1", False),
        ("etcd.example:2379", False),
    ],
)
def test_whether_it_is_on_this_machine(endpoint: str, here: bool):
    assert parse_endpoints(endpoint).on_this_machine is here
