"""`dtf farm token`, in this process."""

from __future__ import annotations

import json
import stat

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.security.tokens import seconds_of
from dtf_lightning.farm.tokens import make_token

pytestmark = pytest.mark.process


@pytest.fixture
def dtf(farm, capsys):
    def run(*words: str, token_file=None) -> tuple[int, str, str]:
        options = ["--farm", farm.urls[0], "--token-file", str(token_file or farm.coordinators[0].token_file)]
        code = main(["farm", *words, *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_from_its_making_to_its_end(dtf, tmp_path):
    """In a file for its owner alone, never on the screen; listed; good for what its role may; revoked."""
    file = tmp_path / "ann.token"
    code, out, _ = dtf("token", "create", "--role", "viewer", "--name", "ann", "--for", "12h", "--to", str(file))
    token = file.read_text().strip()
    assert (code, stat.S_IMODE(file.stat().st_mode), token in out) == (0, 0o600, False)
    assert dtf("status", token_file=file)[0] == 0
    code, _, err = dtf("cordon", "w", token_file=file)
    assert (code, "worker.cordon needs the role operator or admin; this token's role is viewer" in err) == (1, True)
    _, out, _ = dtf("token", "list", "--json")
    (shown,) = (one for one in json.loads(out) if one["subject"] == "ann")
    assert shown["token_id"] in dtf("token", "list")[1]
    assert dtf("token", "revoke", shown["token_id"], "--reason", "left")[:2] == (0, f"{shown['token_id']}: revoked\n")
    assert "this token was revoked: left" in dtf("status", token_file=file)[2]
    assert "links are made with the farm's own token" in dtf("sign-in", token_file=file)[2]


def test_where_it_goes_is_said(dtf, tmp_path):
    file = tmp_path / "there"
    file.write_text("mine")
    assert "say where the token goes" in dtf("token", "create", "--role", "viewer")[2]
    assert "no new file can be made there" in dtf("token", "create", "--role", "viewer", "--to", str(file))[2]
    assert file.read_text() == "mine"
    code, _, err = dtf("token", "create", "--role", "root", "--to", str(tmp_path / "new"))
    assert (code, "role" in err, (tmp_path / "new").exists()) == (2, True, False)
    code, out, _ = dtf("token", "create", "--role", "ci", "--project", "a", "--print", "--json")
    told = json.loads(out)
    assert (code, told["projects"], told["token"].count(".")) == (0, ["a"], 2)
    assert dtf("token", "create", "--role", "ci", "--print")[1].count(".") == 2


def test_keys(dtf):
    code, out, _ = dtf("token", "rotate-keys")
    assert (code, "signs from now on" in out) == (0, True)
    told = json.loads(dtf("token", "rotate-keys", "--forget", "--json")[1])
    assert [one["key"] for one in told["keys"]] == [told["key"]]


def test_times():
    assert [seconds_of(text) for text in ("45s", "90m", "12h", "30d")] == [45, 5400, 43200, 30 * 86400]
    for text in ("", "30", "d", "1w", "-1d", "1.5h"):
        with pytest.raises(SettingsError, match="expected a number with s, m, h or d"):
            seconds_of(text)


def test_a_token_that_cannot_be_made(tmp_path):
    """As where a service may not write: it is said with the file, and what to do."""
    with pytest.raises(SettingsError, match=r"cannot be made in .*: No such file or directory"):
        make_token(tmp_path / "none" / "token")
