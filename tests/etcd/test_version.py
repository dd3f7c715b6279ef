"""Which releases of etcd are taken, warned about, refused."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.wire.version import EtcdVersion, Support, parse_version, version_warning


@pytest.mark.parametrize(
    ("text", "support"),
    [
        ("2.3.8", Support.NONE),
        ("3.3.27", Support.NONE),
        ("3.4.0", Support.LOCAL),
        ("3.4.21", Support.LOCAL),
        ("3.4.22", Support.FULL),
        ("3.5.0", Support.LOCAL),
        ("3.5.12", Support.LOCAL),
        ("3.5.13", Support.FULL),
        ("3.6.0-rc.0", Support.FULL),
        ("4.0.0", Support.FULL),
    ],
)
def test_support(text: str, support: Support):
    version = parse_version(text)
    assert version.support is support
    assert (version_warning(version) is not None) is (support is Support.LOCAL)


def test_parsing():
    assert parse_version("3.5.1+git") == EtcdVersion(3, 5, 1)
    assert str(EtcdVersion(3, 10, 2)) == "3.10.2"
    assert EtcdVersion(3, 10, 0) > EtcdVersion(3, 9, 9)
    with pytest.raises(SettingsError, match="'banana' is not an etcd"):
        parse_version("banana")
