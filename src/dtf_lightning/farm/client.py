"""`Client`: a farm from Python. `dtf_lightning.farm.Client`.

    from dtf_lightning.farm import Client

    with Client() as farm:
        task = farm.submit(["pytest", "tests/"], needs={"cpu": 2})
        print(farm.wait(task).status)
        squares = farm.map(lambda number: number**2, range(100))
        print(sum(farm.results(squares)))

Commands are submitted as tasks, which are known by their ids; functions as futures. A task's id is chosen here, so that what was asked for is asked again after a lost answer, and happens once.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar, overload
from urllib.parse import quote

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.functions.calls import Calls, request_fields
from dtf_lightning.farm.functions.future import ENDS, DoneAndNotDone, Future
from dtf_lightning.farm.home import find_farm
from dtf_lightning.farm.http import Connection, FarmRefused, FarmUnreachable
from dtf_lightning.farm.record.task_id import array_id, instance_id, new_task_id
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.sources import Source, pack_input
from dtf_lightning.farm.trainings import launch
from dtf_lightning.whole_files import whole_file

P = ParamSpec("P")
R = TypeVar("R")

DONE = ENDS
"""States in which a task has ended."""
LONG_POLL = 20.0
PLAN_TIMEOUT = 30.0
"""Seconds for the tasks of a large plan to be written."""
BATCH = 1000
FILTERED = 10_000
"""Tasks that a coordinator is asked by name to tell of."""
ASKED_AT_ONCE = 500
"""Tasks of which one request asks whether they have ended."""
SENT = 1800.0
"""Seconds for which a file that was sent is known to be there: the farm keeps it for an hour after its last use at least."""
SMALL = 256 * 1024
"""Bytes up to which a file is sent without asking whether it is there."""
ONE_COORDINATOR = 2.0
"""Seconds for which one coordinator is asked that no other can stand in for."""


@dataclass(frozen=True)
class TaskInfo:
    """A task as the farm shows it; `raw` is the whole answer."""

    task_id: str
    status: str
    raw: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.status in DONE

    @property
    def exit_code(self) -> int | None:
        """The command's, of the attempt that counts."""
        code = (self.raw.get("results") or {}).get("exit_code")
        return int(code) if code is not None else None

    @property
    def reason(self) -> str:
        """Why it ended as it did, or why it does not run, in one sentence."""
        return str(self.raw.get("error") or (self.raw.get("metadata") or {}).get("reason") or "")

    @property
    def reused_from(self) -> str:
        """The task whose result it has ended by, which had the same inputs; "": its own."""
        return str((self.raw.get("metadata") or {}).get("reused_from") or "")

    @property
    def gang(self) -> int:
        """How many workers run it together."""
        return int((self.raw.get("metadata") or {}).get("gang") or 1)

    @property
    def revision(self) -> int:
        """The identity of its latest attempt; 0 if there was none."""
        return int((self.raw.get("metadata") or {}).get("revision") or 0)


class Client:
    """Talks with any coordinator of a farm. Thread-safe.

    Args:
        url: of one coordinator or more, with commas; `None`: `$DTF_FARM_URL`, or the farm that `dtf farm up` started here.
        token_file: holds the farm's token; `None`: `$DTF_FARM_TOKEN_FILE`, or that farm's.
        ca: the certificate (PEM) of the authority of its coordinators' certificates; `None`: `$DTF_FARM_CA`, or one that
            this machine knows.

    Its methods raise `FarmUnreachable` if no coordinator answers for 20 s, at once `FarmUntrusted` where waiting would not
    help (a certificate that is not accepted), and `FarmRefused` for what the farm refuses.
    """

    def __init__(
        self, url: str | None = None, token_file: str | Path | None = None, *, ca: str | Path | None = None
    ) -> None:
        from dtf_lightning.farm.tokens import read_token

        address = find_farm(url, token_file, Trust(ca=Path(ca) if ca else None))
        self.connection = Connection(address.urls, read_token(address.token_file), trust=address.trust)
        self._sent: dict[str, float] = {}
        """Digest of a file that is there -> when it was sent, on the monotonic clock."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection of this thread."""
        self.connection.close()

    # --- submitting --------------------------------------------------------------------------------------------------

    @overload
    def submit(
        self,
        command: Sequence[str],
        /,
        *,
        name: str = ...,
        needs: Mapping[str, float] | Sequence[Mapping[str, Any]] | None = ...,
        labels: Sequence[str] = ...,
        environment: Mapping[str, str] | None = ...,
        after: Sequence[str | Future[Any]] = ...,
        after_any: Sequence[str | Future[Any]] = ...,
        task_id: str | None = ...,
        **fields: Any,
    ) -> str: ...

    @overload
    def submit(self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> Future[R]: ...

    def submit(self, what: Any, /, *arguments: Any, **named: Any) -> Any:
        """Submit a command and return its task's id, or a call of a function and return its future; then the farm has it.

        A function travels by cloudpickle with its arguments; the farm must allow it (`security.allow_pickle`), and the worker
        have the same Python. `options(...)` says what such a call needs.

        Args:
            what: program and arguments, or a function.
            arguments: of the function, and so is everything that is named.

        Of a command may be named `name`, `needs` (resource -> amount, such as `{"gpu": 1}`, or a list of alternatives
        `{"amounts": ..., "labels": ...}`), `labels` that the worker must carry where `needs` is one mapping, `environment`,
        `after` (ids or futures of what must have completed), `after_any` (of what must have ended), `task_id`, and the fields
        of `TaskRequest`, such as `timeout`, `retries`, `priority`, `project`, `key`.

        Raises `SettingsError` for what cannot be pickled, which it names.
        """
        if callable(what):
            return self.options().submit(what, *arguments, **named)
        task_id = named.pop("task_id", None)
        task = task_id or new_task_id(time.time())
        if named.get("array"):
            task = array_id(task)
        request = {"task_id": task, "command": list(what), **request_fields(*arguments, **named)}
        return str(self.submit_all([request])[0]["task_id"])

    def options(self, **fields: Any) -> Calls:
        """Return what submits calls with these fields, which are those of `submit` for a command.

            farm.options(needs={"gpu": 1}, retries=2).map(train, seeds)

        Raises `SettingsError` for arrays and trainings, which are commands.
        """
        return Calls(self, request_fields(**fields))

    def call(self, function: str, /, *arguments: Any, **named: Any) -> Future[Any]:
        """Submit a call of a function by its name, `package.module:function`, and return its future.

        The worker imports the module; arguments and value are what JSON can hold. It needs no leave.

        Raises `SettingsError` for what is no such name, and for arguments that JSON cannot hold.
        """
        return self.options().call(function, *arguments, **named)

    def train(
        self,
        /,
        script: str,
        arguments: Sequence[str] = (),
        *,
        endpoint: str,
        workers: tuple[int, int] = (1, 1),
        priority: int = launch.PRIORITY,
        python: str = "python",
        options: Mapping[str, str] | None = None,
        suspend_for: int | None = None,
        **fields: Any,
    ) -> str:
        """Submit an elastic training that fills what is idle and gives it back; returns its id, which is its run's too.

        Args:
            script: an unchanged Lightning script with `ElasticCallback()`, a path in the folder of its parts.
            arguments: of the script.
            endpoint: of the etcd at which its parts meet, as every worker reaches it.
            workers: how many parts it has at least, and at most. The minimum starts together, and it keeps it.
            priority: work of at least this priority gets what is above the minimum.
            python: that the workers have.
            options: of the rendezvous, as in torchrun's `--rdzv-conf`, such as `run_dir`.
            suspend_for: work of at least this priority, which is above `priority`, gets the minimum, too. The training waits then,
                with its state in the run's folder, which all workers must reach.
            fields: of `submit`, such as `needs`, `labels`, `after`, `source`, `folder`, `project`, `key`.

        Raises `SettingsError` for numbers of workers that cannot be, and for restart mode with `suspend_for`.
        """
        training = array_id(fields.pop("task_id", None) or new_task_id(time.time()))
        words = launch.command(
            script,
            arguments,
            workers=workers,
            endpoint=endpoint,
            python=python,
            options=options,
            suspended=suspend_for is not None,
        )
        fields = {
            "name": script,
            "priority": priority,
            **fields,
            "array": workers[1],
            "training": workers[0],
            "suspend_for": suspend_for,
        }
        return self.submit(list(words), task_id=training, **fields)

    def submit_all(self, requests: Sequence[Mapping[str, Any]], *, strict: bool = False) -> list[dict[str, Any]]:
        """Submit tasks by their fields; returns what became of each, in order. A dependency stands before what needs it.

        `strict`: have them refused where no worker that is there could do one of them; else that one waits, with a `warning`.
        """
        told: list[dict[str, Any]] = []
        for start in range(0, len(requests), BATCH):
            batch = [dict(request) for request in requests[start : start + BATCH]]
            told += self.connection.ask("POST", "/api/tasks", {"tasks": batch, "strict": strict})["tasks"]
        return told

    @overload
    def map(self, commands: Sequence[Sequence[str]], /, **fields: Any) -> list[str]: ...

    @overload
    def map(self, function: Callable[..., R], /, *iterables: Iterable[Any], **named: Any) -> list[Future[R]]: ...

    def map(self, what: Any, /, *iterables: Iterable[Any], **named: Any) -> Any:
        """Submit many commands alike, and return their ids; or calls of a function with an argument from each iterable.

        The shortest iterable says how many calls there are; `named` are arguments of each. A thousand of them are one
        submission. See `submit`.
        """
        if callable(what):
            return self.options().map(what, *iterables, **named)
        now, fields = time.time(), request_fields(*iterables, **named)
        requests = [{"task_id": new_task_id(now), "command": list(command), **fields} for command in what]
        return [str(told["task_id"]) for told in self.submit_all(requests)]

    def submit_plan(
        self, plan: str | Mapping[str, Any], *, plan_id: str | None = None, source: str = "", folder: str = ""
    ) -> str:
        """Submit a plan and return its id, once the farm will not lose any of its tasks; of one with a schedule its name.

        Args:
            plan: its YAML as text, or the same as a mapping.
            plan_id: to submit once what is submitted twice; `None`: a new one.
            source: digest of the archive of files that each task unpacks (`send_source`).
            folder: where in it the tasks run.
        """
        told = self.send_plan(plan, plan_id=plan_id, source=source, folder=folder)
        return str(told.get("plan_id", told["name"]))

    def send_plan(
        self,
        /,
        plan: str | Mapping[str, Any],
        *,
        plan_id: str | None = None,
        inputs: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Submit a plan as `submit_plan`, and return what became of each of its tasks, or of its `schedule`.

        Args:
            inputs: path that the plan names -> reference of what lies there (`send_input`).
            fields: `source`, `folder`, `name` (of a plan that does not say it), and `strict`, as `submit_all` has it.
        """
        body = {"plan_id": plan_id or new_task_id(time.time()), "plan": plan, "inputs": dict(inputs or {}), **fields}
        told: dict[str, Any] = self.connection.ask("POST", "/api/plans", body, wait=PLAN_TIMEOUT)
        return told

    def send_source(self, source: Source) -> str:
        """Give an archive of files to the farm, unless it has it; returns its digest, for `source=`."""
        path = f"/api/sources/{source.digest}"
        try:
            self.connection.send("HEAD", path, b"")
        except FarmRefused as refusal:
            if refusal.status != 404:
                raise
            self.connection.send("PUT", path, source.archive)
        return source.digest

    def send_files(self, files: Mapping[str, bytes]) -> None:
        """Give files to the farm, by their digests, unless it has them."""
        for digest, data in files.items():
            sent = self._sent.get(digest)
            if sent is None or time.monotonic() - sent > SENT:
                if len(data) > SMALL:
                    self.send_source(Source(digest, data, 1, ""))
                else:
                    self.connection.send("PUT", f"/api/sources/{digest}", data)
                self._sent[digest] = time.monotonic()

    def send_input(self, path: str | Path) -> str:
        """Give a file or folder to the farm, unless it has it; returns its reference, for `inputs={"place": reference}`.

        Raises `SettingsError` for what is not there or too large.
        """
        reference, source = pack_input(Path(path))
        self.send_source(source)
        return reference

    def send_stdin(self, task: str, offset: int, data: bytes, *, complete: bool = False) -> None:
        """Add to what a task that was submitted with `stdin=True` reads. `complete`: this was the last of it."""
        path = f"/api/tasks/{quote(task, safe='')}/stdin"
        self.connection.send("POST", path, data, offset=offset, complete="true" if complete else None)

    # --- one job over several devices ---------------------------------------------------------------------------------

    def orchestrate(
        self, /, task_data: Mapping[str, Any], strategy: str = "auto", *, task_id: str | None = None, **fields: Any
    ) -> str:
        """Submit a job that is split over devices, and return its id.

        Args:
            task_data: what each subtask does (`call` or `command`, `kwargs`, `needs`, ...), and what can be divided: `inputs`,
                `functions`, `models`, `devices`.
            strategy: `data_parallel`, `function_parallel`, `ensemble`, or `auto`.
            task_id: to submit once what is submitted twice; `None`: a new one.
            fields: `merge`, `priority`, `subtask_timeout`, `retry_limit`, `retry_failed_subtasks`, `strict`.
        """
        chosen = task_id or new_task_id(time.time())
        body = {"task_id": chosen, "task_data": dict(task_data), "strategy": strategy, **fields}
        return str(self.connection.ask("POST", "/api/orchestrate", body, wait=PLAN_TIMEOUT)["task_id"])

    def orchestrated_task(self, task: str, *, wait: float = 0.0, partial: bool = False) -> dict[str, Any]:
        """Return a job: `status`, `completion_percentage`, `subtasks`, and once it has ended its `result`.

        Args:
            wait: seconds for which the farm waits for its end.
            partial: with what has come of the result so far.
        """
        told: dict[str, Any] = self.connection.ask(
            "GET",
            f"/api/orchestrated_task/{quote(task, safe='')}",
            wait=wait or None,
            partial="true" if partial else None,
        )
        return told

    def orchestrated_result(self, task: str, timeout: float | None = None) -> Any:
        """Return what a job gave, when it has ended. Raises `DtfError` if not all of it completed, `TimeoutError`."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL if end is None else min(LONG_POLL, end - time.monotonic())
            told = self.orchestrated_task(task, wait=max(left, 0.001))
            if told["status"] == "completed":
                return told["result"]
            if told["end_time"]:
                raise DtfError(f"the orchestrated task {task} ended as {told['status']}: {told['error']}")
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(
                    f"the orchestrated task {task} is {told['status']} after {timeout:g} s, at {told['completion_percentage']} %"
                )

    def orchestrated_tasks(self, /, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield jobs that are split over devices, newest first. `filters`: `status`, `project`, `plan`, `sort`, `limit`."""
        cursor = ""
        while True:
            page = self.connection.ask("GET", "/api/orchestrated_tasks", **filters, cursor=cursor or None)
            yield from page["orchestrated_tasks"]
            cursor = page["next"]
            if not cursor:
                return

    def cancel_orchestrated_task(self, task: str, reason: str = "cancelled by a client") -> str:
        """End a job with all its subtasks: "cancelled", or "finished" if it had ended before."""
        body = {"task_id": task, "reason": reason}
        return str(self.connection.ask("POST", "/api/cancel_orchestrated_task", body)["cancellation"])

    # --- looking -----------------------------------------------------------------------------------------------------

    def task(self, task: str) -> TaskInfo:
        """Return a task as it is now. `ID[N]` is the instance N of an array."""
        return _info(self.connection.ask("GET", f"/api/tasks/{quote(named(task))}"))

    def tasks(self, /, **filters: Any) -> Iterator[TaskInfo]:
        """Yield tasks, those that are not done and those that are, newest first, a page at a time.

        Args:
            filters: `status`, `project`, `plan`, `name`, `worker`, `search`, `created_after` and `created_before` (ISO 8601), `sort`
                (such as `-ended`), and `limit`, which is the size of a page.
        """
        cursor = ""
        while True:
            page = self.connection.ask("GET", "/api/tasks", **filters, cursor=cursor or None)
            yield from map(_info, page["tasks"])
            cursor = page["next"]
            if not cursor:
                return

    @overload
    def wait(self, tasks: str, timeout: float | None = ...) -> TaskInfo: ...

    @overload
    def wait(
        self, tasks: Iterable[Future[R]], timeout: float | None = ..., *, return_when: str = ...
    ) -> DoneAndNotDone[R]: ...

    def wait(self, tasks: Any, timeout: float | None = None, *, return_when: str = ALL_COMPLETED) -> Any:
        """Return a task, by its id, when it has ended; or of some futures those that have, and those that have not.

        Args:
            tasks: the task's id, or futures.
            timeout: seconds. A task that has not ended then raises `TimeoutError`; of futures what has ended is told.
            return_when: of futures: `ALL_COMPLETED`, `FIRST_COMPLETED` or `FIRST_EXCEPTION` of `concurrent.futures`.
        """
        if isinstance(tasks, str):
            return _info(self.wait_for_end(tasks, timeout))
        left = set(tasks)
        done: set[Future[Any]] = set()
        with contextlib.suppress(TimeoutError):
            for future in self.as_completed(list(left), timeout):
                left.discard(future)
                done.add(future)
                first = return_when == FIRST_COMPLETED
                if first or (return_when == FIRST_EXCEPTION and future.failed()):
                    break
        return DoneAndNotDone(done, left)

    def wait_for_end(self, task: str, timeout: float | None = None) -> dict[str, Any]:
        """As `wait`, for a task's id; the task as the API shows it."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL if end is None else min(LONG_POLL, end - time.monotonic())
            told: dict[str, Any] = self.connection.ask("GET", f"/api/tasks/{quote(task)}", wait=max(left, 0.001))
            info = _info(told)
            if info.done:
                return told
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(
                    f"task {task} is {info.status} after {timeout:g} s ({info.reason or 'no reason known'})"
                )

    def show(self, task: str) -> dict[str, Any]:
        """As `task`, as the API shows it."""
        return dict(self.task(task).raw)

    def updates(
        self,
        /,
        channel: str = "task_updates",
        *,
        since: int | None = None,
        details: bool = False,
        until: float | None = None,
        **wanted: Any,
    ) -> Iterator[dict[str, Any]]:
        """Yield what changes in the farm, as it happens, from any coordinator, over its death.

        The first is of the type `subscribed`; its `sequence` is the revision of the farm's record from which on nothing is
        missing. One of the type `gap` says that something may be: look at the lists then.

        Args:
            channel: `task_updates`, `orchestrated_task_updates`, `cluster_status` or `leadership_updates`.
            since: the `sequence` of an earlier update, or a `revision`: what came after it comes first.
            details: with the whole task, where it is done.
            until: on the monotonic clock; `TimeoutError` is raised then.
            wanted: what an update must have: a value, or a list of some; of tasks `task_id`, `status`, `worker_id`,
                `project`, `plan` and `name`.
        """
        from dtf_lightning.farm.updates import follow

        return follow(self.connection, channel, wanted, since=since, details=details, until=until)

    @overload
    def as_completed(self, tasks: Iterable[Future[R]], timeout: float | None = ...) -> Iterator[Future[R]]: ...

    @overload
    def as_completed(self, tasks: Iterable[str], timeout: float | None = ...) -> Iterator[TaskInfo]: ...

    def as_completed(self, tasks: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """Yield each task, by its id, or each future when it has ended, those that end first first.

        Raises `TimeoutError` once `timeout` seconds have passed and some have not.
        """
        wanted = list(dict.fromkeys(tasks))
        futures = {one.task_id: one for one in wanted if isinstance(one, Future)}
        for future in futures.values():
            if future.ended is not None:
                wanted.remove(future)
                yield future
        for info in self._ends([one if isinstance(one, str) else one.task_id for one in wanted], timeout):
            if (of := futures.get(info.task_id)) is not None:
                of.take(info.raw)
            yield of or info

    def _ends(self, tasks: Sequence[str], timeout: float | None) -> Iterator[TaskInfo]:
        until = None if timeout is None else time.monotonic() + timeout
        left = dict.fromkeys(tasks)
        wanted: dict[str, Any] = {"status": sorted(DONE)}
        if len(left) <= FILTERED:
            wanted["task_id"] = list(left)
        while left:
            for update in self.updates(details=True, until=until, **wanted):
                ended = [_info(update["task"])] if "task" in update else []
                if update["type"] in ("subscribed", "gap"):
                    try:
                        ended = list(self._ended_at(update["url"], list(left)))
                    except FarmUnreachable:
                        break  # that coordinator is gone: another one tells from when on it knows everything
                for info in ended:
                    if info.task_id in left:
                        del left[info.task_id]
                        yield info
                if not left:
                    return

    def _ended_at(self, url: str, tasks: Sequence[str]) -> Iterator[TaskInfo]:
        """Yield those of some tasks that have ended, as one coordinator knows it."""
        connection = Connection((url,), self.connection.token, patience=ONE_COORDINATOR, trust=self.connection.trust)
        try:
            for start in range(0, len(tasks), ASKED_AT_ONCE):
                told = self.ask_for_ends(tasks[start : start + ASKED_AT_ONCE], connection=connection)
                for unknown in told["unknown"]:
                    raise unknown_task(unknown)
                yield from map(_info, told["ended"])
        finally:
            connection.close()

    def ask_for_ends(
        self, tasks: Sequence[str], timeout: float = 0.0, *, connection: Connection | None = None
    ) -> dict[str, Any]:
        """Return which of up to 500 tasks have `ended`, as the API shows them, and which are `unknown`.

        `timeout`: seconds for which the farm waits until there is one. `connection`: to ask one coordinator.
        """
        told: dict[str, Any] = (connection or self.connection).ask(
            "GET", "/api/task_ends", tasks=",".join(tasks), wait=timeout
        )
        return told

    def plan(self, plan: str) -> dict[str, Any]:
        """Return how a plan goes: `counts` of its tasks by status, `total`, and how many are `done`."""
        told: dict[str, Any] = self.connection.ask("GET", f"/api/plans/{quote(plan, safe='')}")
        return told

    def plan_ends(self, plan: str, tasks: Iterable[str]) -> Iterator[TaskInfo]:
        """Yield these tasks of one plan as they end, each once, however many they are.

        A look at the plan says what has ended and at which revision that was; from there on the updates tell. Raises
        `DtfError` if the farm does not know some of them.
        """
        left = set(tasks)
        path = f"/api/plans/{quote(plan, safe='')}"
        unknown_since: float | None = None
        while left:
            told = self.connection.ask("GET", path, unfinished="true")
            live = left.intersection(told["unfinished"])
            ended = [_info(one) for one in told["ended"]]
            ended += self._missed(left - live - {info.task_id for info in ended})
            for info in ended:
                if info.task_id in left:
                    left.discard(info.task_id)
                    yield info
            if live:
                unknown_since = None
                for info in self._plan_updates(plan, told["revision"], live):
                    left.discard(info.task_id)
                    yield info
            elif left:
                # Nothing of them is left, as this coordinator has it: it may be behind.
                unknown_since = unknown_since or time.monotonic()
                if time.monotonic() - unknown_since > LONG_POLL:
                    raise DtfError(f"the farm does not know {len(left)} tasks of the plan {plan}, such as {min(left)}")
                self.connection.turn()

    def _plan_updates(self, plan: str, revision: int, live: set[str]) -> Iterator[TaskInfo]:
        """Yield tasks that end after a revision, until all of `live` have ended, or something may be missing."""
        for update in self.updates(since=revision, details=True, plan=plan, status=sorted(DONE)):
            if update["type"] == "gap":
                return
            if update.get("task_id") in live:
                live.discard(update["task_id"])
                yield _info(update["task"])
            if not live:
                return

    def _missed(self, tasks: Iterable[str]) -> list[TaskInfo]:
        found = []
        for task in sorted(tasks):
            try:
                info = self.task(task)
            except FarmRefused as refusal:
                if refusal.status != 404:
                    raise
            else:
                found += [info] if info.done else []
        return found

    @overload
    def results(self, futures: Iterable[Future[R]], /, *, timeout: float | None = ...) -> list[R]: ...

    @overload
    def results(self, /, **filters: Any) -> Iterator[dict[str, Any]]: ...

    def results(self, futures: Any = None, /, *, timeout: float | None = None, **filters: Any) -> Any:
        """Return the values of futures, in their order; or yield results of tasks that are done, newest first.

        Args:
            futures: of calls. The first, in order, that did not return raises as its `result`.
            timeout: seconds for all futures, after which `TimeoutError` is raised.
            filters: of results, also those that are in the archive: `task_id`, `worker_id`, `status` ("success",
                "failure", "partial"), `outcome`, `project`, `plan`, `name`, `since` and `until` (ISO 8601).
        """
        if futures is None:
            return self._all_results(filters)
        wanted = list(futures)
        for _ in self.as_completed(wanted, timeout):
            pass
        return [future.result() for future in wanted]

    def _all_results(self, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            page = self.connection.ask("GET", "/api/results", **filters, cursor=cursor or None)
            yield from page["results"]
            cursor = page["next"]
            if not cursor:
                return

    def query(self, sql: str) -> dict[str, Any]:
        """Ask one SELECT of the schema `farm` in DuckDB; returns `columns`, `rows`, and whether it is `truncated`."""
        told: dict[str, Any] = self.connection.ask("POST", "/api/results/query", {"sql": sql})
        return told

    def next_attempt(self, task: str, revision: int) -> TaskInfo:
        """Return a task when it has an attempt other than the one with this revision, or when it has ended."""
        while True:
            info = _info(self.connection.ask("GET", f"/api/tasks/{quote(task)}", wait=LONG_POLL, other_than=revision))
            if info.done or info.revision != revision:
                return info

    def logs(
        self, task: str, *, follow: bool = False, revision: int = 0, offset: int = 0, rank: int = 0
    ) -> Iterator[bytes]:
        """Yield a task's output: of its latest attempt, or of the one with this revision; with `follow` to its end.

        `rank`: of a gang, whose output.

        Where a coordinator goes, another one goes on at the same place.
        """
        path = f"/api/tasks/{quote(named(task))}/logs"
        while True:
            answer, chunks = self.connection.stream(
                path, follow="true" if follow else None, revision=revision, offset=offset, rank=rank or None
            )
            revision = revision or int(answer.headers.get("X-Attempt-Revision") or 0)
            try:
                for chunk in chunks:
                    offset += len(chunk)
                    yield chunk
            except (OSError, HTTPException):  # the task is silent, or the coordinator has gone
                self.connection.turn()
            else:
                return

    def artifacts(self, task: str, *, revision: int = 0) -> dict[str, Any]:
        """Return what a task has left: `artifacts` (`name`, `size` in bytes, `digest`, `url`), the attempt's `revision`, `missing`.

        `revision`: of the attempt; 0: the one whose result counts, or the latest.
        """
        told: dict[str, Any] = self.connection.ask(
            "GET", f"/api/tasks/{quote(task)}/artifacts", revision=revision or None
        )
        return told

    def read_artifact(self, task: str, name: str, *, revision: int = 0) -> bytes:
        """Return the content of a file that a task has left. Raises `DtfError` if it is not what the farm has."""
        answer, chunks = self.connection.stream(
            f"/api/tasks/{quote(task)}/artifacts/{quote(name)}", revision=revision or None
        )
        data = b"".join(chunks)
        if hashlib.sha256(data).hexdigest() != answer.headers["X-Digest"]:
            raise DtfError(f"the artifact {name!r} of {task} came with another digest than it has: ask again")
        return data

    def fetch_artifact(self, task: str, name: str, folder: Path, *, revision: int = 0) -> Path:
        """Copy a file that a task has left into a folder, under its name; returns where it is.

        Raises `DtfError` for a name that leads out of the folder, and if what came is not what the farm has.
        """
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise DtfError(f"the artifact {name!r} has a name that leads out of a folder: it is not copied")
        path = folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        answer, chunks = self.connection.stream(
            f"/api/tasks/{quote(task)}/artifacts/{quote(name)}", revision=revision or None
        )
        told = hashlib.sha256()
        with whole_file(path, durable=False) as file:
            for chunk in chunks:
                told.update(chunk)
                file.write(chunk)
            if told.hexdigest() != answer.headers["X-Digest"]:
                raise DtfError(f"the artifact {name!r} of {task} came with another digest than it has: ask again")
        return path

    # --- changing ----------------------------------------------------------------------------------------------------

    def cancel(self, task: str, reason: str = "cancelled by a client") -> str:
        """End a task: "cancelled", or "finished" if it had ended before."""
        return str(
            self.connection.ask("POST", f"/api/tasks/{quote(named(task))}/cancel", reason=reason)["cancellation"]
        )

    def cancel_plan(self, plan: str, reason: str = "cancelled by a client") -> int:
        """End all tasks of a plan that are not done; returns how many were ended by this."""
        path = f"/api/plans/{quote(plan, safe='')}/cancel"
        total = 0
        while True:
            told = self.connection.ask("POST", path, reason=reason)
            total += int(told["num_cancelled"])
            if not told["num_live"] or not told["num_cancelled"]:
                return total

    def retry(self, task: str) -> str:
        """Submit a task that is done again, as a new task, and what was skipped of its plan because of its end.

        Returns the new task's id. Raises `FarmRefused` for a task that is not done.
        """
        return str(self._retry(f"/api/tasks/{quote(named(task), safe='')}/retry")["task_id"])

    def retry_plan(self, plan: str) -> dict[str, str]:
        """Submit again what did not complete of a plan; returns old id -> new id, also of none."""
        told = self._retry(f"/api/plans/{quote(plan, safe='')}/retry")
        return {str(one["retry_of"]): str(one["task_id"]) for one in told["tasks"]}

    def _retry(self, path: str) -> dict[str, Any]:
        retry_id = new_task_id(time.time())
        told: dict[str, Any] = {"num_left": 1}
        while told["num_left"]:
            told = self.connection.ask("POST", path, retry_id=retry_id)
        return told

    def workers(self) -> list[dict[str, Any]]:
        """Return the farm's workers."""
        told: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.connection.ask("GET", "/api/workers", cursor=cursor or None)
            told += page["workers"]
            cursor = page["next"]
            if not cursor:
                return told

    def change_worker(self, worker: str, what: str) -> dict[str, Any]:
        """`what`: `drain`, `cordon` or `uncordon`."""
        told: dict[str, Any] = self.connection.ask("POST", f"/api/workers/{quote(worker)}/{what}")
        return told

    def cluster_status(self) -> dict[str, Any]:
        """Return who leads, the coordinators, and how they are together."""
        told: dict[str, Any] = self.connection.ask("GET", "/api/cluster/status")
        return told

    def health(self) -> dict[str, Any]:
        """Return how the farm is: `health`, and `findings`, each with `level`, `subject`, `reason` and `remedy`, the worst first.

        `changes` are those since the coordinator that answers began, the latest first.
        """
        told: dict[str, Any] = self.connection.ask("GET", "/api/findings")
        return told

    def scaling(self) -> dict[str, Any]:
        """Return the pools that the farm scales: each with what waits for it, its workers, what is decided and why, and its latest steps.

        With `dry_run` nothing was done, and `decision` is what would be.
        """
        told: dict[str, Any] = self.connection.ask("GET", "/api/scaling")
        return told

    def reservations(self) -> list[dict[str, Any]]:
        """Return the workers that are reserved, by when that begins, with what still runs there (`running`)."""
        told: list[dict[str, Any]] = self.connection.ask("GET", "/api/reservations")["reservations"]
        return told

    def reserve(
        self,
        workers: Sequence[str] = (),
        *,
        seconds: float,
        begin: datetime | None = None,
        needs: Mapping[str, float] | None = None,
        labels: Sequence[str] = (),
        number: int = 1,
        lead: float = 3600.0,
        project: str = "",
        reason: str = "",
    ) -> dict[str, Any]:
        """Reserve workers, those that are named or `number` of those that have what is needed; nothing else starts there.

        Args:
            begin: with its zone; `None`: now.
            lead: seconds before the begin from which on only that starts which is expected to end before it.
            project: whose tasks may start there; "": nobody's.
        """
        body: dict[str, Any] = {
            "workers": list(workers), "seconds": seconds, "needs": dict(needs or {}), "labels": list(labels), "number": number,
            "lead": lead, "project": project, "reason": reason,
        }  # fmt: skip
        if begin is not None:
            body["begin"] = begin.isoformat()
        told: dict[str, Any] = self.connection.ask("POST", "/api/reservations", body)
        return told

    def cancel_reservation(self, reservation: str) -> None:
        """Take a reservation back: tasks start there again."""
        self.connection.ask("DELETE", f"/api/reservations/{quote(reservation, safe='')}")

    def metrics(self) -> str:
        """Return the farm's metrics in Prometheus' text format, as the coordinator that answers has them."""
        _, chunks = self.connection.stream("/api/metrics")
        return b"".join(chunks).decode()

    def alerts(self, *, open_only: bool = False) -> dict[str, Any]:
        """Return `incidents` (open ones first, each with its `alerts`, `deliveries` and `trouble`), `silences`, `rules` and `handlers`.

        `open_only`: no incident that is over.
        """
        told: dict[str, Any] = self.connection.ask("GET", "/api/alerts", open_only="true" if open_only else None)
        return told

    def acknowledge_alert(self, incident: str) -> dict[str, Any]:
        """Say that somebody is at an incident, so that it does not escalate; return it. Raises `FarmRefused` for none."""
        told: dict[str, Any] = self.connection.ask("POST", f"/api/alerts/{quote(incident, safe='')}/acknowledge")
        return told

    def silence_alerts(self, rule: str = "*", *, subject: str = "*", seconds: float, reason: str) -> dict[str, Any]:
        """Let nothing be said of some alerts for so many seconds; return the silence, with its `id`.

        `rule`, `subject`: patterns, such as `etcd*`; the first is of rules' or incidents' names.
        """
        body = {"rule": rule, "subject": subject, "seconds": seconds, "reason": reason}
        told: dict[str, Any] = self.connection.ask("POST", "/api/silences", body)
        return told

    def unsilence_alerts(self, silence: str) -> None:
        """End a silence. Raises `FarmRefused` for none."""
        self.connection.ask("DELETE", f"/api/silences/{quote(silence, safe='')}")

    def test_alert_handler(self, handler: str) -> dict[str, Any]:
        """Let a handler say that this is a test; return whether it has `told` it, and the `error`. Raises `FarmRefused` for none."""
        told: dict[str, Any] = self.connection.ask("POST", f"/api/alert-handlers/{quote(handler, safe='')}/test")
        return told

    def change_node(self, node: str, what: str, *, reason: str = "") -> dict[str, Any]:
        """`what`: `disable` a coordinator, which hands over the leadership and takes no work, or `enable` it."""
        path = f"/api/cluster/node/{quote(node, safe='')}/{what}"
        told: dict[str, Any] = self.connection.ask("POST", path, reason=reason or None)
        return told

    def projects(self) -> list[dict[str, Any]]:
        """Return the projects, each with `name`, `weight`, `limits`, `max_running` and `max_pending`."""
        told: list[dict[str, Any]] = self.connection.ask("GET", "/api/projects")["projects"]
        return told

    def set_project(
        self,
        name: str,
        *,
        weight: float | None = None,
        limits: Mapping[str, int] | None = None,
        max_running: int | None = None,
        max_pending: int | None = None,
    ) -> dict[str, Any]:
        """Make a project, or change it; what is `None` stays as it is.

        Args:
            weight: of twice the weight it gets twice the share.
            limits: licence -> how many of it its tasks may hold at once.
            max_running: tasks that may run at once; 0: any number.
            max_pending: tasks that may be there without being done; 0: any number.
        """
        body = {
            "weight": weight,
            "limits": None if limits is None else dict(limits),
            "max_running": max_running,
            "max_pending": max_pending,
        }
        told: dict[str, Any] = self.connection.ask("PUT", f"/api/projects/{quote(name, safe='')}", body)
        return told

    def schedules(self) -> list[dict[str, Any]]:
        """Return the plans that are submitted at certain times: `name`, `next_time`, `paused`, `last_run` and its `outcome`."""
        told: list[dict[str, Any]] = self.connection.ask("GET", "/api/schedules")["schedules"]
        return told

    def schedule(self, name: str) -> dict[str, Any]:
        """Return one of them with its `plan` and the latest of its `runs`, the newest first."""
        told: dict[str, Any] = self.connection.ask("GET", f"/api/schedules/{quote(name, safe='')}")
        return told

    def change_schedule(self, name: str, what: str) -> dict[str, Any]:
        """`what`: `pause`, `resume`, or `remove`; runs that were submitted go on."""
        path = f"/api/schedules/{quote(name, safe='')}"
        method, path = ("DELETE", path) if what == "remove" else ("POST", f"{path}/{what}")
        told: dict[str, Any] = self.connection.ask(method, path)
        return told

    def run_schedule(self, name: str) -> str:
        """Have a schedule's plan submitted now, and return the plan's id."""
        plan = new_task_id(time.time())
        self.connection.ask("POST", f"/api/schedules/{quote(name, safe='')}/run", plan_id=plan)
        return plan

    def quarantine(self, project: str | None = None) -> list[dict[str, Any]]:
        """Return the tests whose failures do not count for a while, then those for which that has expired lately.

        Each has `project`, `test`, `owner`, `reason`, `expires` (ISO 8601), and whether it is `active`.
        """
        told = self.connection.ask("GET", "/api/quarantine", project=project)
        return [*told["quarantine"], *told["expired"]]

    def put_into_quarantine(
        self, project: str, test: str, *, owner: str, reason: str, seconds: float
    ) -> dict[str, Any]:
        """Let a test fail for a while, or change for how long. `seconds`: from now."""
        body = {"owner": owner, "reason": reason, "seconds": seconds}
        told: dict[str, Any] = self.connection.ask("PUT", _quarantined(project, test), body)
        return told

    def take_out_of_quarantine(self, project: str, test: str) -> None:
        """Let a test count again. Raises `FarmRefused` for one that does."""
        self.connection.ask("DELETE", _quarantined(project, test))

    def secrets(self, project: str | None = None) -> list[dict[str, Any]]:
        """Return the secrets that the farm keeps: `project`, `name`, when each was `changed`, `by` whom, and its `key`; no values."""
        told: list[dict[str, Any]] = self.connection.ask("GET", "/api/secrets", project=project)["secrets"]
        return told

    def set_secret(self, name: str, value: str, *, project: str = "default") -> dict[str, Any]:
        """Keep a secret for a project's tasks, or change it. Only tasks that name it get its value."""
        told: dict[str, Any] = self.connection.ask("PUT", _secret(project, name), {"value": value})
        return told

    def remove_secret(self, name: str, *, project: str = "default") -> None:
        """Forget a secret. Raises `FarmRefused` for one that the project does not have."""
        self.connection.ask("DELETE", _secret(project, name))

    def rotate_secrets(self) -> dict[str, Any]:
        """Seal all secrets with the newest key; return how many were `resealed`, and which `failed` and why."""
        told: dict[str, Any] = self.connection.ask("POST", "/api/secrets/rotate")
        return told

    def licences(self) -> dict[str, int]:
        """Return how many there are of each licence."""
        return {one["name"]: one["total"] for one in self.connection.ask("GET", "/api/licences")["licences"]}

    def set_licence(self, name: str, total: int) -> None:
        """Say how many there are of a licence."""
        self.connection.ask("PUT", f"/api/licences/{quote(name, safe='')}", {"total": total})

    # --- who may do what ---------------------------------------------------------------------------------------------

    def create_token(
        self,
        role: str,
        *,
        subject: str = "",
        projects: Sequence[str] = (),
        seconds: float = 30 * 86400.0,
        uses: int | None = None,
    ) -> dict[str, Any]:
        """Make a token. The answer's `token` is told this once.

        Args:
            role: by `farm.security.permissions.Role`, such as "developer".
            subject: whose it is; "": as who asks.
            projects: to which it is limited; none: to none.
            seconds: for which it is good.
            uses: of the role "worker": so many workers can join with it.
        """
        body = {"role": role, "subject": subject, "projects": list(projects), "seconds": seconds, "uses": uses}
        told: dict[str, Any] = self.connection.ask("POST", "/api/tokens", body)
        return told

    def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens that were made and are not over, and the workers that have joined."""
        told: list[dict[str, Any]] = self.connection.ask("GET", "/api/tokens")["tokens"]
        return told

    def revoke_token(self, token_id: str, *, reason: str = "") -> dict[str, Any]:
        """Make a token good no more, or all of a worker's that has joined."""
        told: dict[str, Any] = self.connection.ask(
            "DELETE", f"/api/tokens/{quote(token_id, safe='')}", reason=reason or None
        )
        return told

    def rotate_keys(self, *, forget: bool = False) -> dict[str, Any]:
        """Sign tokens with a new key. `forget`: refuse what older ones have signed."""
        told: dict[str, Any] = self.connection.ask("POST", "/api/tokens/rotate-keys", forget="true" if forget else None)
        return told

    def status(self) -> dict[str, Any]:
        """Return the farm's numbers."""
        told: dict[str, Any] = self.connection.ask("GET", "/api/status")
        return told


def _quarantined(project: str, test: str) -> str:
    return f"/api/quarantine/{quote(project, safe='')}/{quote(test, safe='')}"


def _secret(project: str, name: str) -> str:
    return f"/api/secrets/{quote(project, safe='')}/{quote(name, safe='')}"


def unknown_task(task: str) -> FarmRefused:
    """Return the error that a farm knows no such task."""
    return FarmRefused(404, f"this farm knows no task {task!r}", {})


def named(task: str) -> str:
    """Return the id of a task that a person may have written as `ID[N]`: the instance N of an array."""
    array, bracket, number = task.partition("[")
    if bracket and number.endswith("]") and number[:-1].isdecimal():
        return instance_id(array, int(number[:-1]))
    return task


def _info(raw: Mapping[str, Any]) -> TaskInfo:
    try:
        return TaskInfo(str(raw["task_id"]), str(raw["status"]), raw)
    except (KeyError, TypeError) as error:
        raise DtfError(f"the farm answered what is no task: {raw!r}") from error
