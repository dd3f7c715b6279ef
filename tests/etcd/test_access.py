"""What users give to be let in by etcd."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.access import EtcdAccess, read_password


def test_a_password_file_holds_nothing_else(tmp_path):
    """Its line end does not belong to the password."""
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    assert read_password(path) == "s3cret"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
def test_an_unreadable_password_file_is_named(tmp_path, content):
    """torchrun and `dtf` say the same, and etcd is not asked."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"the password file {path} cannot be read: .*; it holds the etcd user's"):
        EtcdAccess(user="me", password_file=path).connect("127.0.0.1:1")


def test_names_are_those_of_the_settings():
    """Each field is a key of `--rdzv-conf`: whoever knows one knows the other."""
    assert set(EtcdAccess.__dataclass_fields__) <= set(AgentSettings.__dataclass_fields__)
