"""Closes the books of a storm: waits until all is done, ends the farm in order, and reads what everybody has written."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import Envelope
from dtf_lightning.farm.testkit.books import Books, Row
from dtf_lightning.farm.testkit.clients import Clients
from dtf_lightning.farm.testkit.ledger import read_ledgers, read_runs
from dtf_lightning.farm.testkit.leftovers import open_connections, processes_of
from dtf_lightning.farm.testkit.local_farm import LocalFarm, Part
from dtf_lightning.whole_files import is_left_beside

SETTLE = 90.0
"""Seconds within which one task more must be done after the storm."""
GONE = 60.0
"""Seconds, at most, for what has ended to be gone: a worker's grace, a lease, a connection."""
INTERVAL = 0.05
PAGE = 5_000


def close_the_books(farm: LocalFarm, clients: Clients, runs: Path) -> Books:
    """Wait for the end of all tasks, end the farm's parts in order, and return the books.

    What does not come about in time is told among `Books.left_over`.
    """
    left: list[str] = []
    if not clients.join(SETTLE):
        left.append(f"clients were not answered within {SETTLE:.0f} s after the storm")
        clients.stop()
    while pending := _pending(farm):
        # As long as some end, the others may.
        if not _wait(left, lambda before=pending: _pending(farm) < before, SETTLE, lambda: _unfinished(farm)):  # type: ignore[misc]
            break
    for part in farm.coordinators.values():
        part.first_line()  # the last one may just have been started again
    _wait(left, lambda: _all_have(farm, len(clients.accepted)), SETTLE, lambda: "results are missing in a DuckDB")
    rows = {name: _rows(farm, name) for name in farm.coordinators}
    left += _end((*farm.crowds.values(), *farm.workers.values()))
    for kind in (Kind.WORKER, Kind.ATTEMPT, Kind.TASK, Kind.ENDING):
        _wait(left, lambda kind=kind: _keys(farm, kind) == 0, GONE, lambda kind=kind: _named(farm, kind))  # type: ignore[misc]
    _wait(left, lambda: not _sockets(farm), GONE, lambda: f"connections of coordinators: {_sockets(farm)}")
    left += _end(farm.coordinators.values())
    for kind in (Kind.COORDINATOR, Kind.LEADER):
        _wait(left, lambda kind=kind: _keys(farm, kind) == 0, GONE, lambda kind=kind: _named(farm, kind))  # type: ignore[misc]
    _wait(left, lambda: not processes_of(farm.folder), GONE, lambda: f"processes: {processes_of(farm.folder)}")
    left += _files(farm)
    executions, acknowledged = read_ledgers(farm.ledgers)
    recorded, versions = _recorded(farm)
    archived = farm.store.range(farm.keys.folder(Kind.TOMBSTONE), page_size=10_000)
    return Books(
        accepted=clients.accepted,
        before=clients.before,
        recorded=recorded,
        versions=versions,
        archived=frozenset(_name(farm, kv.key) for kv in archived.kvs),
        rows=rows,
        executions=[*executions, *read_runs(runs)],
        acknowledged=acknowledged,
        left_over=left,
    )


def _wait(left: list[str], condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> bool:
    try:
        poll_until(condition, seconds, "", interval=INTERVAL)
    except TimeoutError:
        left.append(f"left over after {seconds:.0f} s: {what()}")
        return False
    return True


def _end(parts: Iterable[Part]) -> list[str]:
    """Ask parts to end, and say of those that do not end well how they ended."""
    for part in (parts := list(parts)):
        part.signal(signal.SIGTERM)
    codes = [(part, part.wait_for_end()) for part in parts]
    return [f"{part.name} ended with {code}: {part.last_words()[-500:]}" for part, code in codes if code]


def _pending(farm: LocalFarm) -> int:
    return farm.store.count(farm.keys.folder(Kind.TASK))


def _unfinished(farm: LocalFarm) -> str:
    """Say of one task why it is not done."""
    names = [_name(farm, kv.key) for kv in farm.store.range(farm.keys.folder(Kind.TASK)).kvs]
    with farm.client() as client:
        told = [f"{task.task_id} is {task.status}: {task.reason} {task.raw}" for task in map(client.task, names[:2])]
    return f"{len(names)} tasks are not done, such as {'; '.join(told)}"


def _all_have(farm: LocalFarm, number: int) -> bool:
    return all(_count(farm, name) >= number for name in farm.coordinators)


def _count(farm: LocalFarm, name: str) -> int:
    with farm.client(name) as client:
        try:
            return int(client.query("SELECT count(*) FROM farm.results")["rows"][0][0])
        except (FarmRefused, FarmUnreachable):
            return 0


def _rows(farm: LocalFarm, name: str) -> list[Row]:
    rows: list[Row] = []
    with farm.client(name) as client:
        while page := _page(client, len(rows)):
            rows += page
    return rows


def _page(client: Client, offset: int) -> list[Row]:
    sql = "SELECT task, outcome, attempt, revision, tail, coalesce(reused_from, '') FROM farm.results ORDER BY task"
    return [Row(*row) for row in client.query(f"{sql} LIMIT {PAGE} OFFSET {offset}")["rows"]]


def _recorded(farm: LocalFarm) -> tuple[dict[str, Envelope], dict[str, int]]:
    """Return results in etcd, and how often the key of each was written."""
    recorded: dict[str, Envelope] = {}
    versions: dict[str, int] = {}
    for kv in farm.store.range(farm.keys.folder(Kind.DONE), page_size=10_000).kvs:
        value = decode(Kind.DONE, kv.value)
        assert isinstance(value, Envelope)
        recorded[_name(farm, kv.key)] = value
        versions[_name(farm, kv.key)] = 1 if kv.create_revision == kv.mod_revision else 2
    return recorded, versions


def _keys(farm: LocalFarm, kind: Kind) -> int:
    return farm.store.count(farm.keys.folder(kind))


def _named(farm: LocalFarm, kind: Kind) -> str:
    return f"keys in etcd: {[kv.key for kv in farm.store.range(farm.keys.folder(kind)).kvs][:5]}"


def _name(farm: LocalFarm, key: str) -> str:
    parsed = farm.keys.parse(key)
    assert parsed is not None
    return parsed[1][0]


def _sockets(farm: LocalFarm) -> dict[str, int]:
    """Connections of each coordinator that somebody has opened and nobody has closed."""
    found = {name: open_connections(part.pid) for name, part in farm.coordinators.items()}
    return {name: number for name, number in found.items() if number}


def _files(farm: LocalFarm) -> list[str]:
    """What lies in the workers' folders of attempts that are over, and half-written files of anybody."""
    found = {
        str(path.relative_to(farm.folder))
        for name in farm.workers
        for part in ("attempts", "spool")
        for path in (farm.folder / name / part).glob("*")
    }
    # Of those in the coordinators' folder, later rounds take care.
    found |= {
        str(path.relative_to(farm.folder))
        for path in farm.folder.rglob(".*")
        if is_left_beside(path) and not path.is_relative_to(farm.files)
    }
    return [f"{len(found)} files: {', '.join(sorted(found)[:5])}"] if found else []
