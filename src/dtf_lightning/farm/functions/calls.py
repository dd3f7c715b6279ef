"""`Calls`: submits calls of functions with what they need. Returned by `Client.options`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.spelling import imported
from dtf_lightning.farm.functions.future import Future, FutureFarm
from dtf_lightning.farm.record.task_id import new_task_id

P = ParamSpec("P")
R = TypeVar("R")

COMMANDS_ONLY = ("array", "training", "stdin")
"""Fields that make no sense of a call, which has one value and is one task."""


class CallingFarm(FutureFarm, Protocol):
    """What it asks of its client."""

    def send_files(self, files: Mapping[str, bytes]) -> None:
        """Give files to the farm, by their digests."""
        ...

    def submit_all(self, requests: Sequence[Mapping[str, Any]], *, strict: bool = ...) -> list[dict[str, Any]]:
        """Submit tasks by their fields."""
        ...


class Calls:
    """Submits calls with the same fields. Raises what the client's `submit` raises."""

    def __init__(self, farm: CallingFarm, fields: Mapping[str, Any]) -> None:
        for name in COMMANDS_ONLY:
            if fields.get(name):
                raise SettingsError(
                    f"`{name}` is of commands: of a function `map` makes many calls, each with its value"
                )
        self._farm = farm
        self._fields = fields

    def submit(self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> Future[R]:
        """Submit one call, by cloudpickle, and return its future."""
        return self._send(function, [(arguments, named)])[0]

    def map(self, function: Callable[..., R], /, *iterables: Iterable[Any], **named: Any) -> list[Future[R]]:
        """Submit a call for the arguments that the iterables give together, the shortest of them says how many."""
        return self._send(function, [(arguments, named) for arguments in zip(*iterables, strict=False)])

    def call(self, function: str, /, *arguments: Any, **named: Any) -> Future[Any]:
        """Submit a call of a function by its name, `package.module:function`, and return its future."""
        imported(function, arguments, named)  # raises here what the farm would refuse
        request = {"call": function, "args": list(arguments), "kwargs": named, "name": function, **self._fields}
        return self._submit([request], function, is_pickled=False)[0]

    def _send(
        self, function: Callable[..., R], calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]]
    ) -> list[Future[R]]:
        from dtf_lightning.farm.functions.sending import name_of, pack_calls

        if not calls:
            return []
        name, packed = name_of(function), pack_calls(function, calls)
        self._farm.send_files(packed.files)
        requests = [{"name": name, "pickled": sent, **self._fields} for sent in packed.requests]
        return self._submit(requests, name, is_pickled=True)

    def _submit(self, requests: list[dict[str, Any]], name: str, *, is_pickled: bool) -> list[Future[Any]]:
        now = time.time()
        for request in requests:
            request["task_id"] = request.get("task_id") or new_task_id(now)
        told = self._farm.submit_all(requests)
        return [Future(self._farm, str(one["task_id"]), name, is_pickled=is_pickled) for one in told]


def request_fields(
    *,
    name: str = "",
    needs: Mapping[str, float] | Sequence[Mapping[str, Any]] | None = None,
    labels: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    after: Sequence[str | Future[Any]] = (),
    after_any: Sequence[str | Future[Any]] = (),
    **fields: Any,
) -> dict[str, Any]:
    """Return the fields of a `TaskRequest` from what is said of a task in Python. See `Client.submit`."""
    request = dict(fields)
    if name:
        request["name"] = name
    if needs is not None or labels:
        one = needs is None or isinstance(needs, Mapping)
        request["needs"] = [{"amounts": needs or {}, "labels": list(labels)}] if one else list(needs or ())
    if environment:
        request["environment"] = dict(environment)
    for key, others in (("dependencies", after), ("after_any", after_any)):
        if others:
            request[key] = [one if isinstance(one, str) else one.task_id for one in others]
    return request
