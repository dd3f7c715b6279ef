"""`dtf audit`: which samples of each epoch were consumed, by which workers, and which are missing or repeated.

The rules are those of `elastic/observe/ledger.py`, here as SQL over all workers' ledgers at once: of a generation's
draws those count whose step lies below every later generation's beginning; padding does not count. A torn last line
(from kill -9 while it was written) is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dtf_lightning.database.connection import Connection, connect, single
from dtf_lightning.elastic.observe.ledger import LEDGER_VERSION, read_ledger
from dtf_lightning.errors import SettingsError

SHOWN = 10
"""The most sample ids in a line of the text."""

_COLUMNS = (
    "{v: 'INTEGER', kind: 'VARCHAR', generation: 'INTEGER', rank: 'INTEGER', world_size: 'INTEGER', epoch: 'INTEGER', "
    "step: 'BIGINT', samples: 'BIGINT[]', padding: 'INTEGER', num_streams: 'INTEGER'}"
)

_LINES = f"""
CREATE TEMP TABLE lines AS
SELECT *, regexp_replace(parse_filename(filename), '\\.jsonl$', '') AS worker
FROM read_json($paths, format = 'newline_delimited', columns = {_COLUMNS}, ignore_errors = true, filename = true,
               maximum_object_size = 1073741824)
"""

# A generation's draws count below its limit. The last generation's limit is the step that it ended with, or the step
# that it drew last, whose commit is not on record.
_LIMITS = """
CREATE TEMP TABLE limits AS
WITH begins AS (SELECT generation, min(step) AS step FROM lines WHERE kind = 'begin' GROUP BY generation),
     last AS (SELECT max(generation) AS generation FROM begins),
     final AS (
         SELECT coalesce(max(step) FILTER (kind = 'end'), max(step) FILTER (kind = 'draw'),
                         max(step) FILTER (kind = 'begin')) AS step
         FROM lines JOIN last USING (generation))
SELECT b.generation, b.step AS begin,
       coalesce((SELECT min(later.step) FROM begins later WHERE later.generation > b.generation),
                (SELECT step FROM final)) AS below
FROM begins b
"""

_CONSUMED = """
CREATE TEMP TABLE consumed AS
SELECT epoch, generation, worker, rank, step, unnest(samples[: len(samples) - padding]) AS sample
FROM lines JOIN limits USING (generation) WHERE kind = 'draw' AND step < below
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
    repeated: tuple[Repetition, ...]
    padding: int
    parts: tuple[ConsumedPart, ...]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of auditing the ledgers of all of a run's workers."""

    ledgers: int
    generations: int
    dataset_size: int
    ended: bool
    """Whether training came to its end; if not, the last step that was drawn does not count."""
    committed_steps: int
    void_draws: int
    """The number of draws of steps that were rolled back and drawn again."""
    epochs: tuple[EpochReport, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is missing or repeated in any epoch."""
        return not any(epoch.missing or epoch.repeated for epoch in self.epochs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"clean": self.clean}

    def describe(self) -> Iterator[str]:
        """Yield the report's lines for people."""
        state = "ended" if self.ended else "not ended"
        yield (
            f"{self.ledgers} workers, {self.generations} generations, {self.committed_steps} optimizer steps committed, "
            f"{self.void_draws} draws rolled back and drawn again; training has {state}"
        )
        for epoch in self.epochs:
            yield (
                f"epoch {epoch.epoch}: {epoch.consumed} of {self.dataset_size} samples consumed, "
                f"{len(epoch.missing)} missing, {len(epoch.repeated)} repeated, {epoch.padding} padding"
            )
            for generation, parts in groupby(epoch.parts, key=lambda part: part.generation):
                yield f"  generation {generation}: " + ", ".join(
                    f"{part.worker} (rank {part.rank}) {part.samples}" for part in parts
                )
            if epoch.missing:
                yield f"  missing: {_some(epoch.missing)}"
            for repetition in epoch.repeated[:SHOWN]:
                yield f"  repeated: {repetition.sample} by {', '.join(repetition.by)}"
            if len(epoch.repeated) > SHOWN:
                yield f"  repeated: {len(epoch.repeated) - SHOWN} more"


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


def audit_run(folder: Path, *, dataset_size: int | None = None) -> AuditReport:
    """Audit a run from its folder.

    Args:
        folder: the run's folder, or that of its ledgers.
        dataset_size: samples per epoch; `None`: as many as the highest sample number in any ledger says. Iterable data
            has as many as the epoch that consumed the most of each stream.

    Raises:
        SettingsError: there are no ledgers, or files that are not ledgers, of another version, or not of one run.
    """
    paths = find_ledgers(folder)
    with connect() as database:
        database.execute(_LINES, {"paths": [str(path) for path in paths]})
        _refuse_broken(database, paths)
        for statement in (_LIMITS, _CONSUMED):
            database.execute(statement)
        if dataset_size is None:
            dataset_size = single(database, "SELECT coalesce(max(sample) + 1, 0) FROM consumed")
        database.execute(_UNIVERSE, {"size": dataset_size})
        return AuditReport(
            ledgers=len(paths),
            generations=single(database, "SELECT count(*) FROM limits"),
            dataset_size=single(database, "SELECT count(*) FROM universe"),
            ended=single(database, "SELECT count(*) FROM lines WHERE kind = 'end'") > 0,
            committed_steps=single(database, "SELECT count(DISTINCT step) FROM consumed"),
            void_draws=single(
                database,
                "SELECT count(*) FROM lines JOIN limits USING (generation) WHERE kind = 'draw' AND step >= below",
            ),
            epochs=tuple(_epochs(database)),
        )


def _refuse_broken(database: Connection, paths: Sequence[Path]) -> None:
    broken = database.execute(
        "SELECT filename, count(*) FROM lines WHERE kind IS NULL OR kind NOT IN ('begin', 'draw', 'end') OR step IS NULL "
        "OR generation IS NULL OR (kind = 'draw' AND (samples IS NULL OR padding IS NULL)) GROUP BY filename"
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
    if versions not in ([], [LEDGER_VERSION]):
        raise SettingsError(
            f"ledger versions {sorted(versions)} in {paths[0].parent}, this program reads {LEDGER_VERSION}; read them "
            "with the version of dtf-lightning that wrote them"
        )
    for generation, steps in database.execute(
        "SELECT generation, list(DISTINCT step ORDER BY step) FROM lines WHERE kind = 'begin' GROUP BY generation "
        "HAVING count(DISTINCT step) > 1 ORDER BY generation"
    ).fetchall():
        raise SettingsError(
            f"generation {generation} began at different steps, {steps}: are these the ledgers of one run?"
        )


def _epochs(database: Connection) -> Iterator[EpochReport]:
    padding = dict(
        database.execute(
            "SELECT epoch, sum(padding)::BIGINT FROM lines JOIN limits USING (generation) "
            "WHERE kind = 'draw' AND step < below GROUP BY epoch"
        ).fetchall()
    )
    for epoch in sorted(padding):
        parts = database.execute(
            "SELECT generation, worker, rank, count(*), min(step), max(step) FROM consumed WHERE epoch = ? "
            "GROUP BY ALL ORDER BY generation, rank, worker",
            [epoch],
        ).fetchall()
        missing = database.execute(
            "SELECT sample FROM universe ANTI JOIN (SELECT sample FROM consumed WHERE epoch = ?) USING (sample) "
            "ORDER BY sample",
            [epoch],
        ).fetchall()
        repeated = database.execute(
            "SELECT sample, list(worker || ' (rank ' || rank || ', generation ' || generation || ', step ' || step || ')' "
            "ORDER BY step, worker) FROM consumed WHERE epoch = ? GROUP BY sample HAVING count(*) > 1 ORDER BY sample",
            [epoch],
        ).fetchall()
        yield EpochReport(
            epoch=epoch,
            consumed=single(database, "SELECT count(DISTINCT sample) FROM consumed WHERE epoch = ?", [epoch]),
            missing=tuple(row[0] for row in missing),
            repeated=tuple(Repetition(sample=sample, by=tuple(by)) for sample, by in repeated),
            padding=padding[epoch],
            parts=tuple(
                ConsumedPart(generation=g, worker=worker, rank=rank, samples=count, first_step=first, last_step=last)
                for g, worker, rank, count, first, last in parts
            ),
        )


def _some(samples: Sequence[int]) -> str:
    text = ", ".join(map(str, samples[:SHOWN]))
    return text if len(samples) <= SHOWN else f"{text} and {len(samples) - SHOWN} more"
