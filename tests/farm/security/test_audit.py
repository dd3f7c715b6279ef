"""The audit file's chain: what was changed after it was written is found, whatever else happened to the file."""

from __future__ import annotations

import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.__main__ import main
from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.security.audit import AuditFile, audit_key, verify
from dtf_lightning.farm.tokens import make_token

KEY = audit_key("the farm's token")


class Clock(SystemClock):
    """Stands still, so that the same is written each time."""

    def wall(self):
        return 1_800_000_000.0


def written(path, number, key=KEY):
    file = AuditFile(path, key, Clock())
    for one in range(number):
        file.write(path=f"/api/tasks/{one}", status=200)
    file.close()
    return path.read_text().splitlines(keepends=True)


def verdict_of(path, lines, *keys):
    path.write_text("".join(lines))
    return verify(path, keys or [KEY])


class TestTheChain:
    def test_what_nobody_touched(self, tmp_path):
        written(tmp_path / "audit", 3)
        verdict = verify(tmp_path / "audit", [KEY])
        assert (verdict.lines, verdict.unchained, verdict.torn, verdict.breaks) == (3, 0, 0, [])
        assert verdict.link in verdict.links

    @settings(max_examples=60)
    @given(data=st.data())
    def test_whatever_is_done_to_it_is_found(self, tmp_path_factory, data):
        """Unless it is cut off at its end, which is the same as if that had never been written."""
        path = tmp_path_factory.mktemp("audit") / "audit"
        lines = before = written(path, data.draw(st.integers(2, 6)))
        places = st.integers(0, len(lines) - 1)
        match data.draw(st.sampled_from(["change", "remove", "move", "copy", "add"])):
            case "change":
                at = data.draw(places)
                place = data.draw(st.integers(0, len(lines[at]) - 2))
                other = data.draw(st.sampled_from([c for c in '0a{"x,' if c != lines[at][place]]))
                lines = [*lines[:at], lines[at][:place] + other + lines[at][place + 1 :], *lines[at + 1 :]]
            case "remove":
                at = data.draw(places)
                lines = [*lines[:at], *lines[at + 1 :]]
            case "move":
                lines = data.draw(st.permutations(lines))
            case "copy":
                lines = [*lines, lines[data.draw(places)]]
            case "add":
                lines = [*lines, json.dumps({"time": 1, "path": "/api/tasks", "status": 200}) + "\n"]
        verdict = verdict_of(path, lines)
        is_beginning = lines == before[: len(lines)]
        torn_end = lines[:-1] == before[:-1] and verdict.torn == 1 and verdict.lines == len(before) - 1
        assert (verdict.breaks == []) == (is_beginning or torn_end), lines

    def test_who_has_not_the_token_cannot_make_one(self, tmp_path):
        lines = written(tmp_path / "audit", 3, audit_key("another token"))
        assert len(verdict_of(tmp_path / "audit", lines).breaks) == 3

    def test_what_is_cut_off_is_found_by_a_link_that_was_kept(self, tmp_path):
        lines = written(tmp_path / "audit", 3)
        kept = verify(tmp_path / "audit", [KEY]).link
        assert kept not in verdict_of(tmp_path / "audit", lines[:2]).links


class TestTheFile:
    def test_it_goes_on_after_a_restart(self, tmp_path):
        written(tmp_path / "audit", 2)
        written(tmp_path / "audit", 2)
        assert verify(tmp_path / "audit", [KEY]).breaks == []

    def test_it_goes_on_under_a_new_token(self, tmp_path):
        written(tmp_path / "audit", 2)
        newer = audit_key("a newer one")
        lines = written(tmp_path / "audit", 2, newer)
        assert verdict_of(tmp_path / "audit", lines, KEY, newer).breaks == []
        assert len(verdict_of(tmp_path / "audit", lines, newer).breaks) == 2

    def test_an_earlier_releases_lines_stand_before_it(self, tmp_path):
        (tmp_path / "audit").write_text('{"time": 1.0, "path": "/api/tasks", "status": 200}\n')
        written(tmp_path / "audit", 2)
        verdict = verify(tmp_path / "audit", [KEY])
        assert (verdict.lines, verdict.unchained, verdict.breaks, verdict.first) == (3, 1, [], 1.0)

    def test_every_place_at_which_a_process_can_be_killed(self, tmp_path):
        """The rest of a line stands alone, and the chain goes on behind it; a line that lacks its end alone is whole."""
        whole = written(tmp_path / "audit", 2)
        for place in range(1, len(whole[1])):
            (tmp_path / "audit").write_text(whole[0] + whole[1][:place])
            written(tmp_path / "audit", 1)
            verdict = verify(tmp_path / "audit", [KEY])
            is_whole = place == len(whole[1]) - 1
            assert (verdict.lines, verdict.torn, verdict.breaks) == (2 + is_whole, 1 - is_whole, []), place

    def test_several_that_write_it(self, tmp_path):
        """As after a restart whose former process is about to end."""
        files = [AuditFile(tmp_path / "audit", KEY) for _ in range(3)]

        def write(file):
            for one in range(30):
                file.write(number=one)

        threads = [threading.Thread(target=write, args=(file,)) for file in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for file in files:
            file.close()
        verdict = verify(tmp_path / "audit", [KEY])
        assert (verdict.lines, verdict.torn, verdict.breaks) == (90, 0, [])

    def test_a_full_disk(self, tmp_path, monkeypatch):
        """Nothing is told to be written that is not, and what comes when there is room is in the chain."""
        file = AuditFile(tmp_path / "audit", KEY)
        file.write(number=1)
        write = os.write
        monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:20]))
        with pytest.raises(OSError, match="the disk is full: the audit file has not taken a whole line"):
            file.write(number=2)
        monkeypatch.undo()
        file.write(number=3)
        file.close()
        verdict = verify(tmp_path / "audit", [KEY])
        assert (verdict.lines, verdict.torn, verdict.breaks) == (2, 1, [])


class TestTheCommand:
    @pytest.fixture
    def file(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DTF_FARM_HOME", str(tmp_path))
        token = make_token(tmp_path / "token")
        (tmp_path / "files").mkdir()
        path = tmp_path / "files" / "audit-c0.jsonl"
        written(path, 3, audit_key(token))
        return path

    def test_of_the_farm_that_runs_here(self, file, capsys):
        assert main(["farm", "audit", "verify"]) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"{file}: 3 lines from ")
        assert ": as they were written" in told

    def test_one_that_was_changed(self, file, capsys):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text(lines[0] + lines[1].replace("200", "403") + lines[2])
        assert main(["farm", "audit", "verify", str(file), "--json"]) == 1
        (told,) = json.loads(capsys.readouterr().out)
        assert told["whole"] is False
        assert told["breaks"] == [
            "line 2 does not follow line 1: it was changed, or lines before it were changed, moved or removed"
        ]

    def test_one_that_was_cut_off(self, file, capsys):
        assert main(["farm", "audit", "verify", str(file), "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert main(["farm", "audit", "verify", str(file), "--contains", told["link"]]) == 0
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
        assert main(["farm", "audit", "verify", str(file)]) == 0
        assert main(["farm", "audit", "verify", str(file), "--contains", told["link"]]) == 1
        assert "the end was cut off" in capsys.readouterr().out

    def test_bad_input(self, file, tmp_path, capsys):
        assert main(["farm", "audit", "verify", str(tmp_path / "none")]) == 2
        assert "cannot read" in capsys.readouterr().err
        file.unlink()
        assert main(["farm", "audit", "verify"]) == 2
        assert "name the files, which lie in the folder of a farm's files" in capsys.readouterr().err
