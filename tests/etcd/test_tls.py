"""TLS with client certificates: right ones, wrong ones, none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dtf_lightning.errors import AuthenticationFailed, SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from support.certificates import Authority, Pair
from support.store_worlds import collect


@dataclass(frozen=True)
class Secured:
    """An etcd that wants a client certificate of its authority."""

    endpoint: str
    ca: Path
    client: Pair
    directory: Path

    @property
    def url(self) -> str:
        return f"https://{self.endpoint}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    server = authority.issue("server")
    flags = ("--cert-file", str(server.cert), "--key-file", str(server.key))
    flags += ("--client-cert-auth", "--trusted-ca-file", str(authority.path))
    with EtcdCluster(1, extra=flags, scheme="https") as cluster:
        yield Secured(cluster.endpoint, authority.path, authority.issue("client"), directory)


def test_the_right_certificates(secured: Secured, prefix: str):
    """Calls, a watch and a lease over TLS."""
    client = secured.client
    with connect(secured.url, ca=secured.ca, cert=client.cert, key=client.key, quiet=True) as store:
        watch = store.watch(prefix)
        lease = store.lease(5)
        store.put(prefix + "k", b"v", lease=lease.id)
        lease.revoke()
        assert [event.kv.value for event in collect(watch, 2)] == [b"v", b""]
        watch.cancel()


def test_the_scheme_may_be_left_out_with_certificates(secured: Secured):
    client = secured.client
    connect(secured.endpoint, ca=secured.ca, cert=client.cert, key=client.key, quiet=True).close()


def test_no_client_certificate(secured: Secured):
    with pytest.raises(AuthenticationFailed, match="refuses a connection without a client certificate"):
        connect(secured.url, ca=secured.ca)


def test_a_client_certificate_of_another_authority(secured: Secured, tmp_path: Path):
    stranger = Authority(tmp_path, "stranger").issue("client")
    with pytest.raises(AuthenticationFailed, match="refuses our client certificate"):
        connect(secured.url, ca=secured.ca, cert=stranger.cert, key=stranger.key)


def test_a_server_of_another_authority(secured: Secured, tmp_path: Path):
    stranger = Authority(tmp_path, "stranger")
    client = secured.client
    with pytest.raises(AuthenticationFailed, match=r"its certificate is not accepted: .*Check the CA file"):
        connect(secured.url, ca=stranger.path, cert=client.cert, key=client.key)


def test_no_ca_at_all(secured: Secured):
    """The public authorities do not know our server."""
    with pytest.raises(AuthenticationFailed, match="its certificate is not accepted"):
        connect(secured.url)


def test_a_server_with_another_name(secured: Secured):
    client = secured.client
    given = {"ca": secured.ca, "cert": client.cert, "key": client.key}
    with pytest.raises(AuthenticationFailed, match=r"its certificate is not accepted: Hostname mismatch"):
        connect(secured.url, **given, server_name="elsewhere.example")
    connect(secured.url, **given, server_name="localhost", quiet=True).close()


def test_plain_text_to_a_server_with_tls(secured: Secured):
    with pytest.raises(SettingsError, match="hangs up on a connection without TLS: use https://"):
        connect(secured.endpoint)


def test_tls_to_a_server_without(etcd: EmbeddedEtcd):
    with pytest.raises(SettingsError, match="does not speak TLS: use http://"):
        connect(f"https://{etcd.endpoint}")


class TestFiles:
    """Certificates that cannot work are found before anything is sent."""

    def test_missing(self, tmp_path: Path):
        with pytest.raises(SettingsError, match=r"CA certificate for etcd, /nowhere/ca.pem, cannot be read"):
            connect("https://127.0.0.1", ca="/nowhere/ca.pem")

    def test_not_a_certificate(self, tmp_path: Path):
        file = tmp_path / "ca.pem"
        file.write_text("hello")
        with pytest.raises(SettingsError, match="is not a PEM certificate"):
            connect("https://127.0.0.1", ca=file)

    def test_certificate_without_key(self, secured: Secured):
        with pytest.raises(SettingsError, match="a client certificate for etcd was given without its key"):
            connect(secured.url, ca=secured.ca, cert=secured.client.cert)
        with pytest.raises(SettingsError, match="a client key for etcd was given without its certificate"):
            connect(secured.url, ca=secured.ca, key=secured.client.key)

    def test_certificate_and_key_of_different_pairs(self, secured: Secured, tmp_path: Path):
        other = Authority(tmp_path).issue("other")
        with pytest.raises(SettingsError, match="cannot be used together: key values mismatch"):
            connect(secured.url, ca=secured.ca, cert=secured.client.cert, key=other.key)

    def test_certificates_for_http(self, secured: Secured):
        with pytest.raises(SettingsError, match="certificates were given for an http:// endpoint"):
            connect(f"http://{secured.endpoint}", ca=secured.ca)
