"""Which files come back."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from dtf_lightning.farm.pytest_runs.files_back import bring, matches


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("out", ["out/1.txt", "out/deep/2.png"]),
        ("out/*.txt", ["out/1.txt"]),
        ("**/*.png", ["out/deep/2.png", "3.png"]),
        ("*.png", ["3.png"]),
        ("./out/deep/", ["out/deep/2.png"]),
        ("**", ["out/1.txt", "out/deep/2.png", "3.png"]),
        ("deep", []),
    ],
)
def test_patterns(tmp_path, pattern, names):
    """As pathlib has them, from where the task finds them."""
    files = ["out/1.txt", "out/deep/2.png", "3.png"]
    assert [name for name in files if matches(name, pattern)] == names
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path for match in tmp_path.glob(pattern) for path in (match.rglob("*") if match.is_dir() else [match])]
    assert {path.relative_to(tmp_path).as_posix() for path in found if path.is_file()} == set(names)


def test_what_is_here_as_it_is_there_stays(tmp_path):
    """And what no pattern names, such as the task's own reports."""
    fetched = []
    (tmp_path / "same").write_bytes(b"x")
    (tmp_path / "other").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    left = [
        {"name": name, "digest": digest if name == "same" else "0"}
        for name in ("same", "other", "new", "metrics-1.jsonl")
    ]
    farm = SimpleNamespace(
        artifacts=lambda task: {"artifacts": left, "missing": ["large"]},
        fetch_artifact=lambda task, name, folder: fetched.append(name),
    )
    assert bring(farm, "t", ["same", "other", "new"], tmp_path) == ["large"]
    assert fetched == ["other", "new"]
