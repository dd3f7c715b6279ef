"""`FarmRun`: runs what was collected here on a farm, and reports it in the order in which it would have run here.

Rules that this file guards:
- This thread alone decides and reports; the threads that follow shards only tell it what they hear.
- Whatever ends the run, its tasks are cancelled.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.pytest_runs.courses import Courses, End, Line
from dtf_lightning.farm.pytest_runs.files_back import bring
from dtf_lightning.farm.pytest_runs.lines import Reader, unpacked
from dtf_lightning.farm.pytest_runs.local_side import LocalSide
from dtf_lightning.farm.pytest_runs.marks import Offer, TestNeeds, num_slots, why_nowhere
from dtf_lightning.farm.pytest_runs.options import FarmOptions
from dtf_lightning.farm.pytest_runs.quarantined import NAME, QuarantinedTests
from dtf_lightning.farm.pytest_runs.replay import CRASH, Replay
from dtf_lightning.farm.pytest_runs.selection import Collected, collected
from dtf_lightning.farm.pytest_runs.shards import Selected, cut, expected_seconds, num_shards
from dtf_lightning.farm.pytest_runs.tasks import Broke, Ended, Event, Said, ShardOrder, ShardTasks

DURATIONS = "dtf-farm/durations"
"""Key in pytest's cache: id of a test -> seconds."""


@dataclass
class Shard:
    """What is known of a shard. `tests`: their numbers in the run."""

    tests: Sequence[int]
    reader: Reader = field(default_factory=Reader)
    running: int | None = None
    begun: bool = False
    about: Line = field(default_factory=dict)
    """Who runs it."""
    timed_out: Line | None = None


class FarmRun:
    """A plugin of pytest. `config`: of the run."""

    def __init__(self, config: pytest.Config, options: FarmOptions) -> None:
        self._config, self._options = config, options
        self._shards: dict[int, Shard] = {}
        self._live: set[int] = set()
        """Shards whose tasks have not ended."""
        self._unequal: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            return None  # pytest itself says so, and ends
        if not session.items:
            return True
        try:
            self._run(session)
        except DtfError as error:
            # The name of the option is that of other commands.
            raise pytest.UsageError(f"--farm: {str(error).replace('--farm URL', '--farm-url URL')}") from error
        return True

    def _run(self, session: pytest.Session) -> None:
        from dtf_lightning.farm.client import Client

        options = self._options
        with Client(options.url, options.token_file, ca=options.ca) as farm:
            self._farm = farm
            self._local = LocalSide.of(self._config, options)
            self._tests = collected(session.items, self._local.top)
            self._courses = Courses(len(self._tests))
            self._nowhere, shards = self._cut(_offers(farm))
            self._tasks = ShardTasks(
                farm,
                {
                    "source": farm.send_source(self._local.source),
                    "folder": self._local.folder,
                    "environment": dict(options.variables),
                    "project": options.project,
                    "artifacts": list(options.artifacts),
                },
            )
            self._say(f"farm {farm.connection.url}: {len(self._tests)} tests in {len(shards)} shards")
            try:
                self._submit(shards)
                self._report(session)
                while self._live:
                    self._hear(self._tasks.events.get())
            except BaseException:
                with contextlib.suppress(DtfError):
                    self._tasks.cancel_all("the run of pytest has ended before it")
                raise
            finally:
                self._keep_durations()
                self._tasks.close()

    # --- cutting and submitting --------------------------------------------------------------------------------------

    def _needs(self, test: Collected) -> TestNeeds:
        return test.marked.needs.with_labels(self._options.labels)

    def _cut(self, offers: Sequence[Offer]) -> tuple[dict[int, str], list[list[int]]]:
        """Return why some tests can run nowhere, by their numbers, and the shards of the others."""
        if not offers:
            raise SettingsError("the farm has no workers: start one with `dtf farm worker`, or `dtf farm up`")
        all_needs = {self._needs(test) for test in self._tests}
        reasons = {needs: why_nowhere(offers, needs) for needs in all_needs}
        nowhere = {number: reasons[self._needs(test)] for number, test in enumerate(self._tests)}
        runs = [number for number, reason in nowhere.items() if not reason]
        seconds = expected_seconds([self._tests[number].nodeid for number in runs], self._known_durations())
        selected = [
            Selected(unit=self._tests[number].unit, needs=self._needs(self._tests[number]), seconds=one)
            for number, one in zip(runs, seconds, strict=True)
        ]
        together: dict[Any, float] = {}
        for one in selected:
            together[one.needs] = together.get(one.needs, 0.0) + one.seconds
        numbers = {
            needs: num_shards(total, num_slots(offers, needs), self._options.shards)
            for needs, total in together.items()
        }
        shards = [[runs[index] for index in shard] for shard in cut(selected, numbers)]
        return {number: reason for number, reason in nowhere.items() if reason}, shards

    def _submit(self, shards: Sequence[Sequence[int]]) -> None:
        orders = []
        for tests in shards:
            number = len(self._shards)
            self._shards[number] = Shard(tests)
            self._live.add(number)
            chosen = [self._tests[test] for test in tests]
            name = f"pytest {chosen[0].nodeid}" + (f" and {len(chosen) - 1} more" if len(chosen) > 1 else "")
            orders.append(
                ShardOrder(
                    number=number,
                    file=self._local.shard_file(chosen, self._options.timeout),
                    fields={"needs": [self._needs(chosen[0]).request], "name": name},
                )
            )
        if orders:
            self._tasks.submit(orders)

    # --- hearing -----------------------------------------------------------------------------------------------------

    def _report(self, session: pytest.Session) -> None:
        quarantined = QuarantinedTests(self._farm.quarantine(self._options.project))
        self._config.pluginmanager.register(quarantined, NAME)
        replay = Replay(self._config, quarantined)
        for number, item in enumerate(session.items):
            if number in self._nowhere:
                replay.skip(item, self._nowhere[number])
            else:
                course = self._courses.of[number]
                while not course.finished:
                    self._hear(self._tasks.events.get())
                replay.test(item, course)
                course.lines.clear()
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)

    def _hear(self, event: Event) -> None:
        match event:
            case Said():
                shard = self._shards[event.shard]
                for line in shard.reader.add(event.data):
                    self._hear_line(shard, event.worker, line)
            case Ended():
                self._hear_end(event)
            case Broke():
                raise event.error

    def _hear_line(self, shard: Shard, worker: str, line: Line) -> None:
        kind = line["kind"]
        if kind == "hello":
            shard.about = line
            self._compare(worker, line)
            return
        told = unpacked(line, shard.about["top"], str(self._local.top))
        if kind == "mismatch":
            raise SettingsError(self._mismatch(worker, shard.about, told))
        if kind == "timeout":
            shard.timed_out = told
        elif kind != "done":
            test = self._test_of(shard, told)
            shard.begun = True
            shard.running = test if kind in ("start", "report", "warning") else None
            self._courses.hear(test, told)

    def _test_of(self, shard: Shard, line: Line) -> int:
        """Return of which test a line tells; what ends the run between tests is told of the next one. Raises what it says behind the last."""
        if line["at"] is not None:
            return shard.tests[line["at"]]
        for test in shard.tests:
            if not self._courses.of[test].finished:
                return test
        raise Replay.end_of(line)

    def _hear_end(self, event: Ended) -> None:
        shard = self._shards[event.shard]
        self._live.discard(event.shard)
        if event.task.status == "cancelled":
            pytest.exit(f"the task {event.task.task_id} was cancelled: {event.task.reason}", 2)
        rest = self._courses.rest(
            shard.tests,
            running=shard.running,
            begun=shard.begun,
            end=End.LOST if event.lost else End.BY_ITSELF,
        )
        if rest.left_to_the_farm:
            self._live.add(event.shard)
            self._shards[event.shard] = Shard(shard.tests)
            self._tasks.follow(event.shard, event.revision)
            return
        if event.lost:
            self._tasks.cancel(event.shard, "what is left of it runs in another task")
        if rest.hopeless:
            raise SettingsError(
                f"the worker {event.worker!r} could not run tests ({event.task.reason}); it said:\n{shard.reader.stray}"
            )
        if rest.failed is not None:
            text = self._why(shard, event, self._tests[rest.failed].nodeid)
            self._courses.fail(rest.failed, {"kind": CRASH, "text": text})
        if rest.again:
            self._submit(rest.again)
        if self._options.artifacts and not event.lost:
            here = self._config.invocation_params.dir
            missing = bring(self._farm, event.task.task_id, self._options.artifacts, here)
            if missing:
                self._say(f"farm: not kept of what tests have written: {', '.join(missing)}")

    def _why(self, shard: Shard, event: Ended, nodeid: str) -> str:
        """Say why a test has failed whose process has ended."""
        if shard.timed_out is not None:
            seconds, stacks = shard.timed_out["seconds"], shard.timed_out["stacks"]
            return (
                f"{nodeid} took longer than {seconds:g} s on the worker {event.worker!r}, where it was ended:\n{stacks}"
            )
        if event.lost:
            return f"worker {event.worker!r} was lost while running {nodeid!r}, as another one was before it"
        said = unpacked(shard.reader.stray, str(shard.about.get("top", "")), str(self._local.top))
        return f"worker {event.worker!r} crashed while running {nodeid!r} ({event.task.reason})\n{said}".rstrip()

    def _mismatch(self, worker: str, about: Line, line: Line) -> str:
        missing = "\n".join(f"  {nodeid}" for nodeid in line["missing"])
        errors = f"\nWhat went wrong there:\n{line['errors']}" if line["errors"] else ""
        return (
            f"the worker {worker!r} (Python {_version(about)}, {about['executable']}) does not find {line['num_missing']} of the "
            f"tests that were collected here (Python {_version(self._here())}, {sys.executable}); it found {line['num_found']} "
            f"tests in their files. Missing there:\n{missing}{errors}"
        )

    def _here(self) -> Line:
        plugins = {dist.project_name: dist.version for _, dist in self._config.pluginmanager.list_plugin_distinfo()}
        return {"python": list(sys.version_info[:3]), "pytest": pytest.__version__, "plugins": plugins}

    def _compare(self, worker: str, about: Line) -> None:
        """Refuse a worker with another Python, warn of one with another pytest. Raises `SettingsError`."""
        here = self._here()
        if about["python"][:2] != here["python"][:2]:
            raise SettingsError(
                f"the tests were collected by Python {_version(here)}, and the worker {worker!r} has {_version(about)} "
                f"({about['executable']}): start pytest with the same, name another one by --farm-python, or keep the tests "
                "to other workers by --farm-label"
            )
        theirs, ours = ({"pytest": told["pytest"], **told["plugins"]} for told in (about, here))
        differs = [
            f"{name} {ours.get(name, 'none')} here, {theirs.get(name, 'none')} there"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differs and worker not in self._unequal:
            self._unequal.add(worker)
            text = f"the worker {worker!r} has other packages than this machine: {'; '.join(differs)}"
            self._config.issue_config_time_warning(pytest.PytestWarning(text), stacklevel=2)

    # --- what is shown and kept --------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self._config.option.verbose >= 0:
            reporter.write_line(text)

    def _known_durations(self) -> dict[str, float]:
        cache = getattr(self._config, "cache", None)
        known = cache.get(DURATIONS, {}) if cache is not None else {}
        return {str(nodeid): float(seconds) for nodeid, seconds in known.items()}

    def _keep_durations(self) -> None:
        cache = getattr(self._config, "cache", None)
        new = {
            test.nodeid: round(course.seconds, 4)
            for test, course in zip(self._tests, self._courses.of, strict=True)
            if course.seconds is not None
        }
        if cache is not None and new:
            cache.set(DURATIONS, {**self._known_durations(), **new})


def _offers(farm: Any) -> list[Offer]:
    """Return what the workers have that are there."""
    return [
        Offer(devices=one["capabilities"]["devices"], labels=one["capabilities"]["labels"])
        for one in farm.workers()
        if one["status"] in ("online", "busy") and not one["metadata"]["cordoned"]
    ]


def _version(about: Line) -> str:
    return ".".join(map(str, about["python"]))
