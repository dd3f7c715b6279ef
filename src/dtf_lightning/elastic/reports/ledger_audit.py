"""`dtf audit`: which samples of each epoch were consumed, by which workers, and which are missing or repeated.

The rules are those of `elastic/observe/ledger_rules.py`; which samples they let count is found by SQL over all workers'
ledgers at once. Padding does not count. A torn last line (from kill -9 while it was written) is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dtf_lightning.database.connection import Connection, connect, single
from dtf_lightning.elastic.observe.ledger import READABLE_VERSIONS, read_ledger, readable
from dtf_lightning.elastic.observe.ledger_rules import (
    AbsentLedgers,
    BegunGeneration,
    Ending,
    absent_ledgers,
    committed_below,
    doubtful_epochs,
    in_order_of_time,
    standing_endings,
)
from dtf_lightning.errors import SettingsError

SHOWN = 10
"""The most sample ids, and the most absent ledgers, in the text."""

_COLUMNS = (
    "{v: 'INTEGER', kind: 'VARCHAR', instance: 'VARCHAR', generation: 'INTEGER', rank: 'INTEGER', world_size: 'INTEGER', "
    "formed_at: 'DOUBLE', epoch: 'INTEGER', step: 'BIGINT', samples: 'BIGINT[]', padding: 'INTEGER', "
    "num_streams: 'INTEGER', size: 'BIGINT', left_out: 'BIGINT', why: 'VARCHAR'}"
)

_LINES = f"""
CREATE TEMP TABLE lines AS
SELECT * REPLACE (coalesce(instance, '') AS instance), regexp_replace(parse_filename(filename), '\\.jsonl$', '') AS worker
FROM read_json($paths, format = 'newline_delimited', columns = {_COLUMNS}, ignore_errors = true, filename = true,
               maximum_object_size = 1073741824)
"""

_BEGINS = """
SELECT instance, generation, step, rank, min(formed_at) AS formed_at, min(epoch) AS epoch, max(world_size) AS world_size
FROM lines WHERE kind = 'begin' GROUP BY instance, generation, step, rank
"""

# The last generation's limit is the step that it ended with, or the last that is known to be committed: it drew the next
# one, or came to an epoch's end.
_LAST_STEP = """
SELECT coalesce(max(step) FILTER (kind = 'end'), max(step) FILTER (kind IN ('draw', 'epoch')))
FROM lines WHERE instance = ? AND generation = ?
"""

_CONSUMED = """
CREATE TEMP TABLE consumed AS
SELECT epoch, place, generation, worker, rank, step, unnest(samples[: len(samples) - padding]) AS sample
FROM lines JOIN limits USING (instance, generation) WHERE kind = 'draw' AND step < below
"""

_ENDINGS = """
SELECT DISTINCT place, epoch, step, size, left_out, why FROM lines JOIN limits USING (instance, generation)
WHERE kind = 'epoch'
"""

# All numbers below the size; for iterable data, those of each stream up to the last that any epoch has consumed.
_UNIVERSE = """
CREATE TEMP TABLE universe AS
WITH streams AS (SELECT coalesce(max(num_streams), 1) AS n, max(num_streams) IS NULL AS whole FROM lines),
     tops AS (SELECT sample % n AS stream, max(sample) AS top FROM consumed, streams GROUP BY stream)
SELECT numbers.range AS sample FROM range($size) numbers, streams
WHERE whole OR numbers.range <= (SELECT top FROM tops WHERE stream = numbers.range % n)
"""


@dataclass(frozen=True, kw_only=True)
class ConsumedPart:
    """What one worker consumed of an epoch in one generation."""

    instance: str
    """The run's instance; empty where ledgers do not say it (version 1)."""
    generation: int
    worker: str
    """The name of the worker's ledger: node, local rank, incarnation."""
    rank: int
    samples: int
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A sample that more than one committed draw consumed."""

    sample: int
    by: tuple[str, ...]
    """The draws as `worker (rank r, generation g, step s)`, in the order of steps."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    epoch: int
    consumed: int
    """The number of distinct samples."""
    missing: tuple[int, ...]
    """The samples that were not consumed, if they are more than were left out on purpose."""
    elsewhere: tuple[int, ...]
    """What would be missing if it were not for ledgers that are not here."""
    left_out: int
    """The number of samples that were left out on purpose, and not consumed."""
    why: str
    """Why they were left out."""
    repeated: tuple[Repetition, ...]
    padding: int
    parts: tuple[ConsumedPart, ...]

    def describe(self, dataset_size: int, instances: Sequence[str]) -> Iterator[str]:
        """Yield the lines for people. `instances`: the run's, which are numbered from 1 if there are several."""
        counts = [f"{len(self.missing) - (self.left_out if self.missing else 0)} missing"]
        if self.elsewhere:
            counts = [f"{len(self.elsewhere) - self.left_out} not in these ledgers"]
        if self.left_out:
            counts.append(f"{self.left_out} left out on purpose ({self.why})")
        counts += [f"{len(self.repeated)} repeated", f"{self.padding} padding"]
        yield f"epoch {self.epoch}: {self.consumed} of {dataset_size} samples consumed, {', '.join(counts)}"
        for (instance, generation), parts in groupby(self.parts, key=lambda part: (part.instance, part.generation)):
            of_instance = f"instance {instances.index(instance) + 1}, " if len(instances) > 1 else ""
            yield f"  {of_instance}generation {generation}: " + ", ".join(
                f"{part.worker} (rank {part.rank}) {part.samples}" for part in parts
            )
        among = f", {self.left_out} of these on purpose" if self.left_out else ""
        if self.missing:
            yield f"  missing{among}: {_some(self.missing)}"
        if self.elsewhere:
            yield f"  not in these ledgers{among}: {_some(self.elsewhere)}"
        for repetition in self.repeated[:SHOWN]:
            yield f"  repeated: {repetition.sample} by {', '.join(repetition.by)}"
        if len(self.repeated) > SHOWN:
            yield f"  repeated: {len(self.repeated) - SHOWN} more"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of auditing the ledgers of all of a run's workers."""

    ledgers: int
    instances: tuple[str, ...]
    """The run's instances, in the order of time: it was resumed under its id in its folder if there are several."""
    generations: int
    dataset_size: int
    ended: bool
    """Whether training came to its end; if not, the last step that was drawn does not count."""
    committed_steps: int
    void_draws: int
    """The number of draws of steps that were rolled back and drawn again."""
    absent: tuple[AbsentLedgers, ...]
    """The ledgers that are not here, although steps that count are in them."""
    epochs: tuple[EpochReport, ...]

    @property
    def clean(self) -> bool:
        """Whether all ledgers are here, and nothing is missing or repeated in any epoch."""
        return not self.absent and not any(epoch.missing or epoch.elsewhere or epoch.repeated for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"clean": self.clean}

    def describe(self) -> Iterator[str]:
        """Yield the report's lines for people."""
        state = "ended" if self.ended else "not ended"
        resumed = f" of {len(self.instances)} instances" if len(self.instances) > 1 else ""
        yield (
            f"{self.ledgers} workers, {self.generations} generations{resumed}, {self.committed_steps} optimizer steps "
            f"committed, {self.void_draws} draws rolled back and drawn again; training has {state}"
        )
        yield from (one.describe() for one in self.absent[:SHOWN])
        if len(self.absent) > SHOWN:
            yield f"{len(self.absent) - SHOWN} more ledgers are not here"
        if self.absent:
            yield "  if the run's nodes wrote to several folders, name all of them: dtf audit FOLDER FOLDER ..."
        for epoch in self.epochs:
            yield from epoch.describe(self.dataset_size, self.instances)


def find_ledgers(folder: Path) -> list[Path]:
    """Return the ledgers of a run's folder. Raises `SettingsError` where there are none."""
    for place in (folder / "ledger", folder):
        paths = sorted(place.glob("*.jsonl"))
        if paths:
            return paths
    raise SettingsError(
        f"{folder} has no ledgers (looked for ledger/*.jsonl); give the run's folder, <default_root_dir>/dtf/<run id>, "
        "of a run with ElasticCallback(ledger=True)"
    )


def audit_run(*folders: Path, dataset_size: int | None = None) -> AuditReport:
    """Audit a run from its folder, or from all folders that its nodes wrote to.

    Args:
        folders: the run's folders, or those of its ledgers.
        dataset_size: samples per epoch; `None`: as many as the ledgers say, or (version 1) as the highest sample number in
            any of them says. Iterable data has as many as the epoch that consumed the most of each stream.

    Raises:
        SettingsError: there are no ledgers, or files that are not ledgers, of another version, or not of one run.
    """
    paths = [path for folder in folders for path in find_ledgers(folder)]
    with connect() as database:
        database.execute(_LINES, {"paths": [str(path) for path in paths]})
        _refuse_broken(database, paths)
        generations, limits = _generations(database)
        database.execute(_CONSUMED)
        drawn = dict(database.execute("SELECT step, max(epoch) FROM consumed GROUP BY step").fetchall())
        absent = absent_ledgers(generations, limits, drawn)
        endings = _endings(database, limits)
        if dataset_size is None:
            top = single(database, "SELECT coalesce(max(sample) + 1, 0) FROM consumed")
            dataset_size = max([top, *(ending.size or 0 for ending in endings.values())])
        database.execute(_UNIVERSE, {"size": dataset_size})
        return AuditReport(
            ledgers=len(paths),
            instances=tuple(dict.fromkeys(one.instance for one in generations)),
            generations=len(generations),
            dataset_size=single(database, "SELECT count(*) FROM universe"),
            ended=_has_ended(database, generations),
            committed_steps=single(database, "SELECT count(DISTINCT step) FROM consumed"),
            void_draws=single(
                database,
                "SELECT count(*) FROM lines LEFT JOIN limits USING (instance, generation) "
                "WHERE kind = 'draw' AND (below IS NULL OR step >= below)",
            ),
            absent=tuple(absent),
            epochs=tuple(_epochs(database, generations, endings, doubtful_epochs(generations, absent))),
        )


def _generations(database: Connection) -> tuple[list[BegunGeneration], list[int]]:
    """Return the generations in the order of time, and their limits, which the table `limits` has, too."""
    begins = database.execute(_BEGINS)
    names = [column[0] for column in begins.description or ()]
    try:
        generations = in_order_of_time([dict(zip(names, row, strict=True)) for row in begins.fetchall()])
    except ValueError as error:
        raise SettingsError(str(error)) from None
    last_step = None
    if generations:
        last = generations[-1]
        last_step = single(database, _LAST_STEP, [last.instance, last.number])
    limits = committed_below(generations, last_step)
    database.execute("CREATE TEMP TABLE limits (instance VARCHAR, generation INTEGER, place INTEGER, below BIGINT)")
    for place, (one, limit) in enumerate(zip(generations, limits, strict=True)):
        database.execute("INSERT INTO limits VALUES (?, ?, ?, ?)", [one.instance, one.number, place, limit])
    return generations, limits


def _endings(database: Connection, limits: Sequence[int]) -> dict[int, Ending]:
    names = ("place", "epoch", "step", "size", "left_out", "why")
    lines = [Ending(**dict(zip(names, row, strict=True))) for row in database.execute(_ENDINGS).fetchall()]
    last_draws: dict[int, tuple[int, int]] = {}
    for epoch, place, step in database.execute(
        "SELECT epoch, place, max(step) FROM lines JOIN limits USING (instance, generation) "
        "WHERE kind = 'draw' AND step < below GROUP BY epoch, place"
    ).fetchall():
        last_draws[epoch] = max((place, step), last_draws.get(epoch, (-1, -1)))
    return standing_endings(lines, limits, last_draws)


def _has_ended(database: Connection, generations: Sequence[BegunGeneration]) -> bool:
    instance = generations[-1].instance if generations else ""
    return bool(single(database, "SELECT count(*) > 0 FROM lines WHERE kind = 'end' AND instance = ?", [instance]))


def _refuse_broken(database: Connection, paths: Sequence[Path]) -> None:
    broken = database.execute(
        "SELECT filename, count(*) FROM lines WHERE kind IS NULL OR kind NOT IN ('begin', 'draw', 'epoch', 'end') OR step IS NULL "
        "OR generation IS NULL OR (kind = 'draw' AND (samples IS NULL OR padding IS NULL)) "
        "OR (kind = 'epoch' AND (epoch IS NULL OR why IS NULL)) GROUP BY filename"
    ).fetchall()
    for name, count in broken:
        data = Path(name).read_bytes()
        if count > (0 if data.endswith(b"\n") else 1):
            hint = f"{count} lines of this file are no ledger lines; is it a ledger of dtf-lightning?"
            try:
                deque(read_ledger(Path(name)), maxlen=0)
            except ValueError as error:  # the error names the first broken line
                raise SettingsError(f"{error} ({hint})") from None
            raise SettingsError(f"{name}: {hint}")
    versions = [row[0] for row in database.execute("SELECT DISTINCT v FROM lines WHERE v IS NOT NULL").fetchall()]
    if not set(versions) <= set(READABLE_VERSIONS):
        raise SettingsError(
            f"ledger versions {sorted(versions)} in {paths[0].parent}, this program reads {readable()}; read them "
            "with the version of dtf-lightning that wrote them"
        )
    for generation, steps in database.execute(
        "SELECT generation, list(DISTINCT step ORDER BY step) FROM lines WHERE kind = 'end' GROUP BY instance, generation "
        "HAVING count(DISTINCT step) > 1 ORDER BY generation"
    ).fetchall():
        raise SettingsError(
            f"two members ended generation {generation} at other steps, {' and '.join(map(str, steps))}; are these the "
            "ledgers of one run?"
        )


def _epochs(
    database: Connection,
    generations: Sequence[BegunGeneration],
    endings: dict[int, Ending],
    doubtful: frozenset[int],
) -> Iterator[EpochReport]:
    padding = dict(
        database.execute(
            "SELECT epoch, sum(padding)::BIGINT FROM lines JOIN limits USING (instance, generation) "
            "WHERE kind = 'draw' AND step < below GROUP BY epoch"
        ).fetchall()
    )
    for epoch in sorted(padding):
        parts = database.execute(
            "SELECT place, worker, rank, count(*), min(step), max(step) FROM consumed WHERE epoch = ? "
            "GROUP BY ALL ORDER BY place, rank, worker",
            [epoch],
        ).fetchall()
        num_unseen = single(
            database,
            "SELECT count(*) FROM universe ANTI JOIN (SELECT sample FROM consumed WHERE epoch = ?) USING (sample)",
            [epoch],
        )
        ending = endings.get(epoch)
        allowed = (num_unseen if ending.left_out is None else ending.left_out) if ending is not None else 0
        unseen = _unseen(database, epoch) if num_unseen > allowed else ()
        repeated = database.execute(
            "SELECT sample, list(worker || ' (rank ' || rank || ', generation ' || generation || ', step ' || step || ')' "
            "ORDER BY step, worker) FROM consumed WHERE epoch = ? GROUP BY sample HAVING count(*) > 1 ORDER BY sample",
            [epoch],
        ).fetchall()
        yield EpochReport(
            epoch=epoch,
            consumed=single(database, "SELECT count(DISTINCT sample) FROM consumed WHERE epoch = ?", [epoch]),
            missing=() if epoch in doubtful else unseen,
            elsewhere=unseen if epoch in doubtful else (),
            left_out=min(allowed, num_unseen),
            why=ending.why if ending is not None else "",
            repeated=tuple(Repetition(sample=sample, by=tuple(by)) for sample, by in repeated),
            padding=padding[epoch],
            parts=tuple(
                ConsumedPart(
                    instance=generations[place].instance,
                    generation=generations[place].number,
                    worker=worker,
                    rank=rank,
                    samples=count,
                    first_step=first,
                    last_step=last,
                )
                for place, worker, rank, count, first, last in parts
            ),
        )


def _unseen(database: Connection, epoch: int) -> tuple[int, ...]:
    """Return the samples that no committed step of the epoch consumed."""
    rows = database.execute(
        "SELECT sample FROM universe ANTI JOIN (SELECT sample FROM consumed WHERE epoch = ?) USING (sample) ORDER BY sample",
        [epoch],
    ).fetchall()
    return tuple(row[0] for row in rows)


def _some(samples: Sequence[int]) -> str:
    text = ", ".join(map(str, samples[:SHOWN]))
    return text if len(samples) <= SHOWN else f"{text} and {len(samples) - SHOWN} more"
