"""`dtf farm compare --on-farm`: one exclusive task on a real farm; the verdict comes back, is checked and kept here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.client import TaskInfo
from dtf_lightning.farm.compare.on_farm import compare_on_farm, kept_of, shown
from dtf_lightning.farm.verdicts.pairs.verdict import ReplayDiffers
from support.farm.whole import Farm


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory):
    """Its worker finds `dtf` on its path, as where the package is installed."""
    bin_folder = tmp_path_factory.mktemp("bin")
    dtf = bin_folder / "dtf"
    dtf.write_text(f'#!/bin/sh\nexec {sys.executable} -m dtf_lightning "$@"\n')
    dtf.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(bin_folder), prepend=":")
        farm = Farm(tmp_path_factory.mktemp("farm"))
    yield farm
    farm.close()


@pytest.mark.process
def test_on_a_worker(farm):
    """With the folder's files; exit codes as here; what fails there is told with its output."""
    for side, latency in (("base", 20), ("candidate", 22)):
        (farm.project / f"{side}.sh").write_text(
            f"""printf '{{"latency": {latency}}}\\n' > $DTF_FARM_RESULTS/told.jsonl\n"""
        )
    done = farm.dtf("compare", "--on-farm", "sh base.sh", "sh candidate.sh", "--metric", "latency:ms", "--json")
    assert done.returncode == 1, done.stderr
    (told,) = json.loads(done.stdout)["verdicts"]
    assert told["sentence"].startswith("latency: slower by 10.0 %")
    replayed = farm.dtf("verdict", "replay", told["id"])
    assert (replayed.returncode, b"every bit is the same" in replayed.stdout) == (0, True)
    failed = farm.dtf("compare", "--on-farm", "sh base.sh", "echo so far; exit 4", "--metric", "latency:ms")
    assert failed.returncode == 2
    assert b"came to no verdict on the farm" in failed.stderr
    assert b"exit 4 ended with exit code 4; its output ends:\nso far" in failed.stderr
    assert farm.dtf("compare", "--on-farm", "main", "mine", "--", "true").returncode == 2


class Told:
    """A farm that answers with this output."""

    def __init__(self, output: bytes, exit_code: int) -> None:
        self.output, self.exit_code = output, exit_code

    def submit_all(self, requests):
        self.requests = requests

    def send_source(self, source):
        return source.digest

    def wait(self, task):
        return TaskInfo(task, "failed", {"results": {"exit_code": self.exit_code}, "error": "exit code 1"})

    def logs(self, task):
        yield self.output


def test_what_comes_back_is_recomputed(tmp_path: Path):
    """A verdict that its samples do not give is refused; so is output that has none."""
    from dtf_lightning.farm.compare.book import Kept
    from dtf_lightning.farm.compare.session import Compared
    from dtf_lightning.farm.verdicts.pairs.comparison import Comparison, Sample
    from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
    from dtf_lightning.farm.verdicts.pairs.verdict import judge

    samples = []
    for pair in range(10):
        first = first_of_pair("seed", pair)
        for side in (first, Side.CANDIDATE if first is Side.BASE else Side.BASE):
            value = 1.5 if side is Side.CANDIDATE else 1.0
            samples.append(Sample(pair=pair, side=side, process=f"{pair}{side.value}", value=value))
    comparison = Comparison(
        metric="time", unit="s", higher_is_better=False, plan=Plan(), seed="seed", samples=tuple(samples)
    )
    compared = Compared(comparison=comparison, verdict=judge(comparison))
    kept = Kept(verdict="1", made=2.0, base="a", candidate="b", machine="{}", sentence="told", compared=compared)
    body = json.loads(json.dumps(shown(kept)))
    assert kept_of(body) == kept
    output = json.dumps({"verdicts": [body]}).encode()
    told = Told(b"dtf farm compare: noise\n" + output + b"\n", 1)
    assert compare_on_farm(told, ["a", "b"], [], tmp_path, timeout=5) == [kept]
    assert told.requests[0]["needs"] == [{"amounts": {"cpu": 1.0}, "labels": [], "exclusive": True}]
    forged = output.replace(b'"slower"', b'"same"')
    with pytest.raises(ReplayDiffers, match="the samples give state = 'slower'"):
        compare_on_farm(Told(forged, 0), ["a", "b"], [], tmp_path, timeout=5)
    for wrong in (b"", b"no such program", b'{"verdicts": ['):
        with pytest.raises(SettingsError, match="came to no verdict on the farm"):
            compare_on_farm(Told(wrong, 127), ["a", "b"], [], tmp_path, timeout=5)
