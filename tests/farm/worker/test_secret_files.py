"""A worker's secrets: which it offers, and what is never said of them."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.worker.service.secret_files import SecretFiles


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)

    def write(name: str, value: bytes, mode: int = 0o600):
        path = folder / name
        path.write_bytes(value)
        path.chmod(mode)

    folder_write = write
    folder_write("HF_TOKEN", b"hf_abcdef\n")
    return folder, folder_write


def test_names_are_labels_and_values_are_given(folder):
    path, write = folder
    write("B", b"line one\nline two\n")
    write("not-a-variable", b"long enough")
    secrets = SecretFiles(path)
    assert secrets.labels() == ("secret:B", "secret:HF_TOKEN")
    assert secrets.values(["HF_TOKEN", "B"]) == {"HF_TOKEN": "hf_abcdef", "B": "line one\nline two"}


def test_a_worker_without_secrets(tmp_path):
    for secrets in (SecretFiles(None), SecretFiles(tmp_path / "nowhere")):
        assert secrets.labels() == ()
        assert secrets.values([]) == {}
        with pytest.raises(SettingsError, match="X"):
            secrets.values(["X"])


@pytest.mark.parametrize(
    ("value", "mode", "said"),
    [
        (b"abcdefgh", 0o640, "others may read"),
        (b"abc", 0o600, "4 to 65536 bytes"),
        (b"x" * 70_000, 0o600, "4 to 65536 bytes"),
        (b"abcd\0efg", 0o600, "no NUL"),
        (b"hush\xff\xfehush", 0o600, "it is no UTF-8"),
    ],
    ids=["mode", "short", "long", "nul", "bytes"],
)
def test_what_cannot_be_given_is_not_offered(folder, caplog, value, mode, said):
    path, write = folder
    write("BAD", value, mode)
    secrets = SecretFiles(path)
    assert secrets.labels() == ("secret:HF_TOKEN",)
    with pytest.raises(SettingsError, match=said) as error:
        secrets.values(["BAD"])
    for text in (caplog.text, str(error.value), repr(error.value.__context__), repr(error.value.__cause__)):
        assert "abc" not in text.replace(str(path), "")
        assert "hush" not in text.replace(str(path), "")


def test_a_folder_that_others_may_read(folder):
    path, _ = folder
    path.chmod(0o755)
    assert SecretFiles(path).labels() == ()
