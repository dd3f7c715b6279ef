"""What a task's inputs are named by."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.inputs import Input, InputKind, check_place, is_local, read_input

DIGEST, COMMIT = "0f" * 32, "1e" * 20


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        (f"sha256:{DIGEST}", Input(kind=InputKind.FILE, digest=DIGEST)),
        (f"tree:{DIGEST}", Input(kind=InputKind.FOLDER, digest=DIGEST)),
        (f"https://h/a?b=c#sha256={DIGEST}", Input(kind=InputKind.URL, url="https://h/a?b=c", digest=DIGEST)),
        (f"file:///data/a#sha256={DIGEST}", Input(kind=InputKind.URL, url="file:///data/a", digest=DIGEST)),
        (f"git+https://h/r.git@{COMMIT}", Input(kind=InputKind.GIT, url="https://h/r.git", commit=COMMIT)),
        (f"git+ssh://git@h/r@{COMMIT}", Input(kind=InputKind.GIT, url="ssh://git@h/r", commit=COMMIT)),
    ],
)
def test_references(reference, wanted):
    assert read_input(reference) == wanted
    assert not is_local(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "", "data/train.csv", "https://h/a", f"https://h/a#sha256={DIGEST[1:]}", "git+https://h/r@main",
        f"git+ext::sh -c x@{COMMIT}", f"ftp://h/a#sha256={DIGEST}", f"sha256:{DIGEST.upper()}", f"git+https://h/r@{COMMIT[1:]}",
    ],
)  # fmt: skip
def test_what_means_nothing(reference):
    with pytest.raises(SettingsError, match="is no input; expected"):
        read_input(reference)


def test_paths():
    assert all(map(is_local, ["data", "../data", "/data/x", "C:x", "a b"]))
    assert not any(map(is_local, ["https://h/x", "sha256:x", "s3://b/x"]))


@pytest.mark.parametrize("place", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0b"])
def test_places_outside(place):
    with pytest.raises(SettingsError, match="must be a path below"):
        check_place(place)


def test_places():
    for place in ("a", "a/b.txt", "..a/b"):
        check_place(place)
