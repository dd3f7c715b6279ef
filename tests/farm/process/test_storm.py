"""A storm over a worker's folder: keepers killed, workers gone before they could keep an outcome, attempts cancelled."""

from __future__ import annotations

import random

import psutil
import pytest

from dtf_lightning.farm.worker.logs import KeptLogs
from dtf_lightning.farm.worker.orders import AttemptEnded
from dtf_lightning.farm.worker.spool import Spool
from support.farm.worker import Worker

pytestmark = pytest.mark.process

ROUNDS, EACH = 5, 6
SCRIPTS = (
    "echo {n} >> {runs}; exit {code}",
    "echo {n} >> {runs}; sleep 0.05; echo done; exit {code}",
    "echo {n} >> {runs}; setsid sleep 60 & sleep 0.02; exit {code}",
    "echo {n} >> {runs}; trap '' TERM; sleep 0.3; exit {code}",
    "echo {n} >> {runs}; exec sleep 60",
)


def keepers(folder) -> list[psutil.Process]:
    return [it for it in psutil.process_iter(["cmdline"]) if str(folder) in (it.info["cmdline"] or [])[4:]]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(2, 22))])
def test_the_books_balance(tmp_path, seed):
    """Every attempt has one outcome in the spool; it ran once at most, and once if it completed; nothing is left of it."""
    chance, folder, runs = random.Random(seed), tmp_path / "worker", tmp_path / "runs"
    spool, started, kept = Spool(folder), {}, {}

    def keep(worker: Worker, *, forgetful: bool) -> None:
        for told in list(worker.heard.told):
            if (
                isinstance(told, AttemptEnded)
                and told.revision not in kept
                and not (forgetful and chance.random() < 0.3)
            ):
                kept[told.revision] = told.outcome
                spool.keep(told.number, told.task, told.revision, told.outcome)

    for _ in range(ROUNDS):
        worker = Worker(folder, devices={"gpu": ("0", "1", "2")}, patience=1.0)
        for _ in range(EACH):
            code = chance.randrange(2)
            script = chance.choice(SCRIPTS).replace("{runs}", str(runs)).replace("{code}", str(code))
            number = len(started) + 1
            revision = worker.shell(
                script.replace("{n}", str(number)),
                timeout=1.5,
                grace=0.1,
                amounts={"gpu": chance.choice([0, 0, 0.5, 1])},
            )
            started[revision] = (number, code)
        for revision in chance.sample(list(started), 2):
            worker.executor.cancel(f"t{revision}", revision, "by chance")
        fault = chance.choice(["none", "keeper killed", "worker gone", "worker gone", "both"])
        if fault in ("keeper killed", "both"):
            for keeper in keepers(folder):
                keeper.kill()
        if fault == "none":
            worker.heard.wait(lambda worker=worker: not worker.executor.running())
        keep(worker, forgetful=True)
        worker.executor.leave()
    last = Worker(folder, devices={"gpu": ("0", "1", "2")})
    last.heard.wait(lambda: not last.executor.running())
    keep(last, forgetful=False)
    last.executor.close(0.0)

    assert kept.keys() == started.keys()
    assert {it.revision: it.outcome for it in spool.kept()} == kept
    ran = [int(line) for line in runs.read_text().split()]
    assert len(ran) == len(set(ran))
    for revision, (number, code) in started.items():
        if kept[revision].exit_code is not None:
            assert (kept[revision].exit_code, number in ran) == (code, True)
    logs = KeptLogs(folder)
    for revision in started:
        spool.forget(f"t{revision}", revision)
        logs.stored(f"t{revision}", revision, kept[revision].log_bytes)
    assert [path for name in ("attempts", "spool") for path in (folder / name).iterdir()] == []
