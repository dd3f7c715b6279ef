"""Findings: from what is seen of a farm, what is wrong with it, how bad that is, why, and what to do. Pure.

| kind | warning | critical |
|---|---|---|
| `no_leader` | | nobody leads |
| `etcd_members` | some do not answer | fewer than are needed answer |
| `etcd_latency` | a read takes 0.2 s or more | 1 s or more |
| `etcd_size` | half of the quota, or ids that will fill it | new work is refused |
| `etcd_problem` | it cannot be asked how large it is | |
| `coordinator_gone` | an enabled one has gone | |
| `coordinator_machine`, `worker_machine` | as the machine's own limits say | likewise |
| `coordinator_silent` | it is there, and has said nothing for 60 s | |
| `worker_gone` | it has no connection, and was not drained | |
| `worker_silent` | it is connected, and its last report is older than 180 s | |
| `worker_clock` | its reports come from the future, by 30 s or more | |
| `worker_errors` | 3 tests or more failed there that passed elsewhere, at 4 times the others' rate of failures | |
| `queue_lacking` | a task waits for what no worker has | |
| `queue_wait` | the oldest task of a device class has waited for 30 min | 6 h |
| `queue_starving` | it has waited for 5 min while 20 that came later run | |
| `results`, `files` | as results say; what is old cannot be removed | likewise |

Rule: a finding is of one thing (`kind` and `subject`), and the same one as long as it lasts, whatever its numbers become.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dtf_lightning.farm.rules.cluster_health import quorum_size
from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.quota import HALF
from dtf_lightning.farm.rules.watching.observation import (
    Observation,
    SeenCoordinator,
    SeenEtcd,
    SeenQueue,
    SeenWorker,
    WorkerErrors,
)

KINDS = (
    "no_leader", "etcd_members", "etcd_latency", "etcd_size", "etcd_problem", "coordinator_gone", "coordinator_machine",
    "coordinator_silent", "worker_gone", "worker_machine", "worker_silent", "worker_clock", "worker_errors", "queue_lacking",
    "queue_wait", "queue_starving", "results", "files",
)  # fmt: skip
"""All kinds of findings: the table above."""

WARNING, CRITICAL = HealthStatus.WARNING, HealthStatus.CRITICAL
SLOW_READ, STUCK_READ = 0.2, 1.0
COORDINATOR_SILENT = 60.0
"""Seconds; it speaks every ten."""
WORKER_SILENT = 180.0
"""Seconds; it is recorded once a minute."""
CLOCK_AHEAD = 30.0
ALONE, TIMES, SHARE = 3, 4.0, 0.2
"""Tests that fail on one worker alone; how often more than on the others; and of all its runs, for it to be told."""
LONG_WAIT, ENDLESS_WAIT = 1800.0, 21_600.0
STARVING, OVERTAKEN = 300.0, 20
KEPT = 200
"""Changes that are remembered."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong."""

    kind: str
    level: HealthStatus
    subject: str
    """Of which worker, coordinator or class of devices; what is about the whole farm says `etcd`, `results` and so on."""
    reason: str
    """One sentence, without a full stop, with its numbers."""
    remedy: str
    """What to do, in one sentence."""


def findings(seen: Observation) -> list[Finding]:
    """Return what is wrong, the worst first."""
    others = [one.errors for one in seen.workers]
    found = [
        *_farm(seen),
        *_etcd(seen.etcd),
        *(finding for one in seen.coordinators for finding in _coordinator(one)),
        *(finding for one in seen.workers for finding in _worker(one)),
        *(finding for one in seen.workers for finding in _errors(one, others)),
        *(finding for one in seen.queues for finding in _queue(one)),
    ]
    order = list(HealthStatus)
    return sorted(found, key=lambda finding: (-order.index(finding.level), finding.kind, finding.subject))


def worst(found: Iterable[Finding]) -> HealthStatus:
    """Return how the farm is."""
    return max((finding.level for finding in found), key=list(HealthStatus).index, default=HealthStatus.HEALTHY)


def _farm(seen: Observation) -> Iterator[Finding]:
    if not seen.leader:
        yield Finding(
            kind="no_leader", level=CRITICAL, subject="the farm", reason="nobody leads, so that nothing is started",
            remedy="See that etcd answers and that a coordinator is there and enabled: dtf farm doctor, dtf farm nodes.",
        )  # fmt: skip
    if seen.results is not HealthStatus.HEALTHY:
        yield Finding(
            kind="results", level=seen.results, subject="results", reason=seen.results_reason or "they are not well",
            remedy="See that the farm's folder and its archive can be written to; nothing is lost: etcd keeps what is not archived.",
        )  # fmt: skip
    if seen.files_problem:
        yield Finding(
            kind="files", level=WARNING, subject="files", reason=f"what is old cannot be removed: {seen.files_problem}",
            remedy="See that the farm's folder can be written to, before its disk is full.",
        )  # fmt: skip


def _etcd(etcd: SeenEtcd) -> Iterator[Finding]:
    needed = quorum_size(etcd.members)
    if etcd.members and etcd.answering < etcd.members:
        yield Finding(
            kind="etcd_members", level=CRITICAL if etcd.answering < needed else WARNING, subject="etcd",
            reason=f"{etcd.answering} of {etcd.members} members answer, {needed} are needed",
            remedy="Start the others again, or replace them: etcdctl member list.",
        )  # fmt: skip
    if etcd.latency is not None and etcd.latency >= SLOW_READ:
        yield Finding(
            kind="etcd_latency", level=CRITICAL if etcd.latency >= STUCK_READ else WARNING, subject="etcd",
            reason=f"a read takes {etcd.latency:.2f} s, which is usually below 0.01 s",
            remedy="Give it a disk of its own, and see what else uses its machine: every start and end of a task waits for it.",
        )  # fmt: skip
    if etcd.refusal:
        yield Finding(
            kind="etcd_size", level=CRITICAL, subject="etcd", reason=f"new work is refused: {etcd.refusal}",
            remedy="Cancel what waits, shorten `retention`, or give etcd a larger quota.",
        )  # fmt: skip
    elif etcd.ids or (etcd.size is not None and etcd.quota and etcd.size >= HALF * etcd.quota):
        share = 100 * (etcd.size or 0) / max(etcd.quota, 1)
        yield Finding(
            kind="etcd_size", level=WARNING, subject="etcd", reason=etcd.ids or f"its file has {share:.0f} % of its quota",
            remedy="Nothing must be done yet; at three quarters new work is refused.",
        )  # fmt: skip
    if etcd.problem:
        yield Finding(
            kind="etcd_problem", level=WARNING, subject="etcd", reason=f"it cannot be asked how large it is: {etcd.problem}",
            remedy="See that etcd answers: dtf farm doctor.",
        )  # fmt: skip


def _coordinator(one: SeenCoordinator) -> Iterator[Finding]:
    if not one.there:
        if one.enabled:
            yield Finding(
                kind="coordinator_gone", level=WARNING, subject=one.name, reason="this coordinator has gone",
                remedy="Start it again; if it is not to come back, it is forgotten after a day.",
            )  # fmt: skip
        return
    if one.health is not HealthStatus.HEALTHY:
        yield Finding(
            kind="coordinator_machine", level=one.health, subject=one.name, reason="; ".join(one.reasons) or "its machine is not well",
            remedy=f"Free its machine, or let others lead: dtf farm node disable {one.name}.",
        )  # fmt: skip
    if one.word_age is not None and one.word_age > COORDINATOR_SILENT:
        yield Finding(
            kind="coordinator_silent", level=WARNING, subject=one.name,
            reason=f"this coordinator holds its lease and has said nothing for {one.word_age:.0f} s",
            remedy="See whether its process hangs or its clock is wrong; ended, it starts anew without loss.",
        )  # fmt: skip


def _worker(one: SeenWorker) -> Iterator[Finding]:
    if not one.connected:
        if not one.draining:
            had = f", with {one.num_tasks} tasks" if one.num_tasks else ""
            yield Finding(
                kind="worker_gone", level=WARNING, subject=one.name, reason=f"this worker has no connection{had}",
                remedy="Start dtf farm worker there again; what it ran is run elsewhere.",
            )  # fmt: skip
        return
    if one.health not in (None, HealthStatus.HEALTHY):
        yield Finding(
            kind="worker_machine", level=one.health, subject=one.name, reason=one.health_reason or "its machine is not well",
            remedy=f"Free its machine; meanwhile nothing more starts there after dtf farm cordon {one.name}.",
        )  # fmt: skip
    if one.report_age is not None and one.report_age > WORKER_SILENT:
        yield Finding(
            kind="worker_silent", level=WARNING, subject=one.name,
            reason=f"it is connected, and its last report of its machine is {one.report_age:.0f} s old",
            remedy="See whether its process is stuck, or its clock is slow.",
        )  # fmt: skip
    if one.report_age is not None and one.report_age < -CLOCK_AHEAD:
        yield Finding(
            kind="worker_clock", level=WARNING, subject=one.name, reason=f"its clock is {-one.report_age:.0f} s ahead of this coordinator's",
            remedy="Let both machines keep time by NTP: times of its tasks are wrong by as much.",
        )  # fmt: skip


def _errors(one: SeenWorker, all_of_them: list[WorkerErrors]) -> Iterator[Finding]:
    mine = one.errors
    if mine.alone < ALONE or mine.failed < SHARE * mine.runs:
        return
    runs = sum(errors.runs for errors in all_of_them) - mine.runs
    failed = sum(errors.failed for errors in all_of_them) - mine.failed
    # With few runs of others nothing is known of their rate: half a failure more than there were.
    if runs and mine.failed / mine.runs >= TIMES * (failed + 0.5) / runs:
        cordon = "" if one.cordoned else f" Meanwhile: dtf farm cordon {one.name}."
        if one.cordoned and one.cordoned_for:
            cordon = f" The farm has cordoned it; when it is mended: dtf farm uncordon {one.name}."
        yield Finding(
            kind="worker_errors", level=WARNING, subject=one.name,
            reason=f"{mine.alone} tests failed here that passed elsewhere; {mine.failed} of its {mine.runs} latest runs failed, {failed} of "
            f"the others' {runs}",
            remedy=f"Find out what is wrong with the machine: dtf farm blame of one of them.{cordon}",
        )  # fmt: skip


def _queue(one: SeenQueue) -> Iterator[Finding]:
    if one.lacking:
        yield Finding(
            kind="queue_lacking", level=WARNING, subject=one.device, reason=f"the task {one.task} waits for what no worker has: {one.lacking}",
            remedy="Start a worker that has it, or cancel the task.",
        )  # fmt: skip
        return
    if one.oldest >= LONG_WAIT:
        yield Finding(
            kind="queue_wait", level=CRITICAL if one.oldest >= ENDLESS_WAIT else WARNING, subject=one.device,
            reason=f"{one.waiting} tasks wait, the oldest ({one.task}) for {one.oldest / 60:.0f} min",
            remedy="Add workers of this class, or cancel what is not needed; its screen says why it waits.",
        )  # fmt: skip
    if one.oldest >= STARVING and one.overtaken >= OVERTAKEN:
        yield Finding(
            kind="queue_starving", level=WARNING, subject=one.device,
            reason=f"the task {one.task} has waited for {one.oldest / 60:.0f} min, and {one.overtaken} that came later run",
            remedy="See its project's share and limits (dtf farm project list), or raise its priority.",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FindingChange:
    """A finding has begun, has become worse or better, or is over."""

    at: float
    """Seconds since the epoch."""
    kind: str
    subject: str
    before: HealthStatus
    after: HealthStatus
    reason: str
    """Of the finding, as it is or was last."""


class FindingHistory:
    """What has changed, the latest `KEPT`."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, str], Finding] = {}
        self._since: dict[tuple[str, str], float] = {}
        self._changes: deque[FindingChange] = deque(maxlen=KEPT)

    @property
    def since(self) -> dict[tuple[str, str], float]:
        """When each finding that there is began: (kind, subject) -> seconds since the epoch."""
        return dict(self._since)

    @property
    def changes(self) -> list[FindingChange]:
        """The latest first."""
        return list(reversed(self._changes))

    def take(self, found: Iterable[Finding], at: float) -> None:
        """Remember what is found now. `at`: seconds since the epoch."""
        now = {(finding.kind, finding.subject): finding for finding in found}
        for key in sorted(now.keys() | self._now.keys()):
            before, after = self._now.get(key), now.get(key)
            levels = tuple(HealthStatus.HEALTHY if one is None else one.level for one in (before, after))
            told = after or before
            assert told is not None
            if levels[0] is not levels[1]:
                self._changes.append(
                    FindingChange(
                        at=at, kind=key[0], subject=key[1], before=levels[0], after=levels[1], reason=told.reason
                    )
                )
        self._since = {key: self._since.get(key, at) for key in now}
        self._now = now
