"""What an attempt has left goes out without its secrets: names, texts, metrics, what a call returned."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.worker.folders import AttemptFolder
from dtf_lightning.farm.worker.keeper.masking import Masker
from dtf_lightning.farm.worker.keeper.messages import End
from dtf_lightning.farm.worker.masks import mask as module
from dtf_lightning.farm.worker.masks.mask import Mask
from dtf_lightning.farm.worker.orders import AttemptOrder
from dtf_lightning.farm.worker.outcomes import outcome

SECRET = 'p@ss<word>&"1"'


@pytest.fixture
def folder(tmp_path):
    folder = AttemptFolder(tmp_path / "t.7")
    folder.make()
    return folder


def ended(folder, mask, **fields):
    order = AttemptOrder(task="t", number=1, revision=7, command=("true",), **fields)
    end = End(status=256, exit_code=None, kind="failed", reason=f"it said {SECRET}", started=1.0, ended=2.0)
    return outcome(order, folder, end, mask)


def test_everything_that_goes_out(folder):
    """Metrics, counts, artifacts with their names, what a call told, the reason. The task's own files stay as they are."""
    (folder.results / "m.jsonl").write_text(json.dumps({"loss": 0.5, SECRET: 1, "note": SECRET}) + "\n")
    case = ET.Element("testcase", name=SECRET)
    ET.ElementTree(case).write(folder.results / "other.xml")
    (folder.results / f"of {SECRET.replace('/', '')}.txt").write_text("nothing")
    (folder.work / "out.txt").write_text(f"the word is {SECRET}.")
    (folder.work / "plain.txt").write_text("no word")
    (folder.work / "model.bin").write_bytes(b"\0" + SECRET.encode())
    folder.returned.write_text(json.dumps({"value": SECRET}))
    told = ended(folder, Mask([SECRET]), artifacts=("*.txt", "*.bin"), returns=True)
    assert (dict(told.metrics), told.returned, told.reason) == (
        {"loss": 0.5, "***": 1.0},
        '{"value": "***"}',
        "it said ***",
    )
    assert set(told.artifacts) == {"m.jsonl", "other.xml", "of ***.txt", "out.txt", "plain.txt", "model.bin"}
    out = {name: open(path, "rb").read() for name, path in told.artifacts.items()}  # noqa: SIM115
    assert out["out.txt"] == b"the word is ***."
    assert b"word" not in out["m.jsonl"] + out["other.xml"]
    assert ET.fromstring(out["other.xml"]).get("name") == "***"
    assert out["model.bin"].endswith(SECRET.encode())
    assert (folder.work / "out.txt").read_text().endswith(f"{SECRET}.")
    assert told.artifacts["plain.txt"] == str(folder.work / "plain.txt")
    assert len(list(folder.masked.iterdir())) == 3
    folder.clear_workspace()
    assert not folder.masked.exists()


def test_where_nobody_knows_them_any_more_nothing_goes_out(folder):
    (folder.results / "m.jsonl").write_text('{"loss": 0.5}\n')
    folder.returned.write_text('{"value": 1}')
    told = ended(folder, None, returns=True)
    assert (dict(told.metrics), dict(told.artifacts), told.returned) == ({}, {}, "")
    assert "its results and artifacts are withheld" in told.reason
    assert told.exit_code == 1


def test_without_secrets_nothing_is_copied(folder):
    (folder.results / "a.txt").write_text(SECRET)
    told = ended(folder, Mask())
    assert told.artifacts == {"a.txt": str(folder.results / "a.txt")}
    assert not folder.masked.exists()


def test_what_cannot_be_looked_at_does_not_go_out(folder):
    """Such as where the disk takes no copy."""
    (folder.results / "a.txt").write_text(SECRET)
    folder.masked.write_text("in the way")
    told = ended(folder, Mask([SECRET]))
    assert dict(told.artifacts) == {}
    assert "a.txt is withheld, as it cannot be looked at for secrets" in told.reason


@given(st.lists(st.sampled_from([b"abcd", b"ab", b"cd", b"\n", b"x" * 7]), max_size=12), st.integers(1, 5))
def test_a_file_in_pieces_is_a_stream_at_once(tmp_path_factory, parts, piece):
    folder = tmp_path_factory.getbasetemp()
    path, copy = folder / "whole", folder / "copies" / "copy"
    data = b"".join(parts)
    path.write_bytes(data)
    before, module.PIECE = module.PIECE, piece
    try:
        out = Mask(["abcd"]).file(path, copy)
    finally:
        module.PIECE = before
    masker = Masker(["abcd"])
    assert out.read_bytes() == masker.add(data) + masker.end()
    assert (out == path) == (b"abcd" not in data)
    assert path.read_bytes() == data


@pytest.mark.parametrize("secret", ["1234", "a\nbcde\n"])
def test_a_secret_of_digits_or_of_lines(folder, secret):
    """Rather no metric than a part of a secret."""
    (folder.results / "m.jsonl").write_text(json.dumps({"loss": 0.12345}) + "\n" + json.dumps({"acc": 0.5}) + "\n")
    (folder.results / "a.txt").write_text(secret)
    told = ended(folder, Mask([secret]))
    assert told.metrics["acc"] == 0.5
    assert ("loss" in told.metrics) == (secret != "1234")
    assert "***" in open(told.artifacts["a.txt"]).read()  # noqa: SIM115
