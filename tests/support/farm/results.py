"""Results of tasks for tests, and an archive in memory."""

from __future__ import annotations

from dataclasses import replace

from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.asked import pack
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Change, Held
from dtf_lightning.farm.record.values import Envelope, FailedAttempt, TaskOutcome, TaskSpecification
from dtf_lightning.farm.results.archive import ArchiveUnavailable
from dtf_lightning.farm.results.rows import SeenResult
from dtf_lightning.farm.results.store import FarmResults

ENVELOPE = Envelope(
    outcome=TaskOutcome.COMPLETED,
    attempt=1,
    revision=7,
    workers=("w1",),
    reason="exit code 0",
    started=1_800_000_000.25,
    ended=1_800_000_002.75,
    exit_code=0,
    kind="completed",
    metrics={"loss": 0.5, "cpu_seconds": 1.25, "peak_memory": 4096.0},
    counts={"passed": 12},
    artifacts={"report.html": "file:///x/report.html"},
    log_bytes=17,
    tail="ok\n",
    submitted=1_800_000_000.0,
    project="vision",
    plan="nightly",
    name="unit tests",
    command=("pytest", "tests/"),
)
FAILED = FailedAttempt(revision=5, workers=("w0",), reason="exit code 1", ended=1_800_000_000.125)


def shown(task: str, envelope: Envelope = ENVELOPE, *, recorded: int = 9) -> Change:
    """What a watch shows of a result."""
    return Change(Kind.DONE, (task,), None, Held(envelope, recorded, recorded), recorded)


def gone(task: str, *, revision: int = 20) -> Change:
    """What it shows when etcd forgets one."""
    return Change(Kind.DONE, (task,), None, None, revision)


def shown_failure(task: str, number: int = 1, failed: FailedAttempt = FAILED) -> Change:
    """What it shows of an attempt after which the task is tried again."""
    return Change(Kind.FAILED, (task, str(number)), None, Held(failed, 5, 5), 5)


def finish(store: Store, keys: FarmKeys, task: str, *, failures: int = 0, **fields: object) -> Envelope:
    """Let a task end in etcd, as the record's writes leave it."""
    for number in range(1, failures + 1):
        store.put(keys.key(Kind.FAILED, task, number), encode(FAILED))
    envelope = replace(ENVELOPE, attempt=failures + 1, **fields)
    store.put(keys.key(Kind.DONE, task), encode(envelope))
    return envelope


BEGIN = 1_800_000_000.0
_KINDS = {"passed": "completed"}


def seen_run(number: int, end: str, **fields: object) -> SeenResult:
    """The run of this number, from which its times follow. `environment`: of what was asked for."""
    environment = fields.pop("environment", {})
    outcome = (
        TaskOutcome.COMPLETED
        if end == "passed"
        else TaskOutcome.CANCELLED
        if end == "cancelled"
        else TaskOutcome.FAILED
    )
    told = {"reason": "exit code 0" if end == "passed" else "exit code 1", "workers": ("w1",), "metrics": {}} | fields
    envelope = replace(
        ENVELOPE,
        outcome=outcome,
        kind=_KINDS.get(end, end),
        started=BEGIN + number,
        ended=BEGIN + number + 2.0,
        asked=pack(TaskSpecification(command=("x",), environment=environment)),
        **told,
    )
    return SeenResult(task=f"t{number:06}", envelope=envelope, recorded=number + 1, seen=BEGIN)


def emptied(results: FarmResults) -> FarmResults:
    """The same database without rows, which is much faster than another one."""
    results._writer.execute("DELETE FROM farm.results; DELETE FROM farm.kept; DELETE FROM farm.failed_attempts")
    return results


class MemoryArchive:
    """A folder of files; with `full` it takes none."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.full = False

    def write(self, name: str, data: bytes) -> None:
        if self.full:
            raise ArchiveUnavailable(f"no space for {name} (injected)")
        self.files[name] = data

    def read(self, name: str) -> bytes:
        return self.files[name]

    def names(self, since: str = "") -> list[str]:
        return sorted(name for name in self.files if name >= since.partition("/")[0])


class SetClock:
    """Both clocks show what they are set to."""

    def __init__(self, now: float = 1_800_000_100.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now
