"""The ledger records which rank drew which samples for which optimizer step of which generation.

Rules that this file guards:

* a draw is written **before** its step: when a step is committed, every member's draw of it is on disk, whoever dies;
* a generation's beginning is written with the step that it resumes at: draws of older generations for that step or a
  later one are void, because the step was rolled back and its samples were drawn again;
* an epoch's ending is written with the samples that are left out on purpose, so that no others pass for it;
* every line names the run's instance, so that a run that is resumed under its id in its folder goes on in its ledgers;
* lines are whole or absent (one `write` each, no buffer), so that kill -9 costs at most the line in flight.

So an audit needs no other witness; `ledger_rules.py` says what counts.

Versions: 1 had neither instances nor endings of epochs, and is still read, as one instance without a name.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

LEDGER_VERSION = 2
READABLE_VERSIONS = (1, 2)


def readable() -> str:
    """Return the versions that this program reads, for people."""
    return " and ".join(map(str, READABLE_VERSIONS))


class Ledger:
    """One worker's ledger file: JSON lines that are only ever appended.

    Args:
        path: the file, which is created with its folder; an existing file is continued behind its last whole line.

    Raises:
        OSError: the folder cannot be made or written to; from the other methods, the disk is full.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.path = path
        self._instance: dict[str, str] = {}
        """What every line says of the run's instance: nothing before the first `begin`, or where it has no name."""
        _cut_torn_line_off(path)

    def begin(
        self,
        *,
        generation: int,
        rank: int,
        world_size: int,
        step: int,
        epoch: int,
        instance: str = "",
        formed_at: float = 0.0,
    ) -> None:
        """Record that a generation begins: its next optimizer step is `step` (the steps before it are committed).

        Args:
            generation: its number.
            rank: the rank of this worker in it.
            world_size: how many workers it has.
            step: the optimizer steps committed so far.
            epoch: the running epoch.
            instance: the run's instance; the lines that follow name it, too.
            formed_at: when the generation was formed, in seconds since the epoch.
        """
        self._instance = {"instance": instance} if instance else {}
        formed = {"formed_at": formed_at} if instance else {}
        self._write(
            kind="begin", generation=generation, rank=rank, world_size=world_size, step=step, epoch=epoch, **formed
        )

    def draw(
        self,
        *,
        generation: int,
        rank: int,
        epoch: int,
        step: int,
        samples: list[int],
        padding: int = 0,
        num_streams: int | None = None,
    ) -> None:
        """Record samples drawn for optimizer step `step` (starts at 0); several lines per step under accumulation.

        Args:
            generation: the number of the generation in which they are drawn.
            rank: the rank of this worker in it.
            epoch: the running epoch.
            step: the optimizer step for which they are drawn.
            samples: the samples' numbers; with streams, the place in the stream times `num_streams`, plus the stream.
            padding: how many samples, at the end, fill the epoch's tail up to a multiple of the world size.
            num_streams: the streams of iterable data, whose samples' numbers may have holes where a stream is shorter.
        """
        streams = {} if num_streams is None else {"num_streams": num_streams}
        self._write(
            kind="draw",
            generation=generation,
            rank=rank,
            epoch=epoch,
            step=step,
            samples=samples,
            padding=padding,
            **streams,
        )

    def epoch_ends(
        self,
        *,
        generation: int,
        rank: int,
        epoch: int,
        step: int,
        size: int | None,
        left_out: int | None = 0,
        why: str = "",
    ) -> None:
        """Record that an epoch's batches are done, and what of its samples was left out on purpose.

        Args:
            generation: the number of the generation in which it ends.
            rank: the rank of this worker in it.
            epoch: the epoch.
            step: the optimizer steps committed so far.
            size: the samples of the data set; `None` where nobody knows (iterable data).
            left_out: how many of them were left out; `None`: all that were not drawn, of unknown number.
            why: why they were left out, for people.
        """
        self._write(
            kind="epoch",
            generation=generation,
            rank=rank,
            epoch=epoch,
            step=step,
            size=size,
            left_out=left_out,
            why=why,
        )

    def end(self, *, generation: int, rank: int, step: int) -> None:
        """Record that training came to its end with `step` committed steps."""
        self._write(kind="end", generation=generation, rank=rank, step=step)

    def close(self) -> None:
        """Close the file; nothing may be written afterwards. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, **fields: Any) -> None:
        line = json.dumps({"v": LEDGER_VERSION, **self._instance, **fields}, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(line)} bytes of a ledger line", str(self.path))


@dataclass(frozen=True, kw_only=True)
class EpochAudit:
    """What happened to the samples of one epoch."""

    epoch: int
    consumed: Counter[int]
    """For each sample id, how often committed steps consumed it, padding left out."""
    padding: int = 0
    """The number of samples drawn a second time to fill the epoch's tail (`tail="pad"`)."""
    left_out: int | None = 0
    """The number of samples left out on purpose; `None`: all that were not consumed."""
    why: str = ""
    """Why they were left out; empty if none were."""
    doubtful: bool = False
    """Whether its samples may be in ledgers that are not here, so that nothing can be said to be missing."""

    def missing(self, dataset_size: int) -> list[int]:
        """Return the samples that no committed step consumed, if they are more than were left out on purpose.

        Which of them those are cannot be told. Empty where ledgers are not here: see `elsewhere`.
        """
        return [] if self.doubtful else self._unseen(dataset_size)

    def elsewhere(self, dataset_size: int) -> list[int]:
        """Return what would be missing if the ledgers that are not here did not have it."""
        return self._unseen(dataset_size) if self.doubtful else []

    def _unseen(self, dataset_size: int) -> list[int]:
        unseen = [sample for sample in range(dataset_size) if sample not in self.consumed]
        return [] if self.left_out is None or len(unseen) <= self.left_out else unseen

    def repeated(self) -> dict[int, int]:
        """Return, for each sample id consumed more than once, how often too often."""
        return {sample: count - 1 for sample, count in self.consumed.items() if count > 1}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the ledgers of a run's workers say together."""

    epochs: dict[int, EpochAudit]
    committed_steps: int
    """The number of distinct optimizer steps that count."""
    void_draws: int
    """The number of draws of steps that were rolled back and drawn again."""
    resume_steps: dict[int, int]
    """For each generation of the run's last instance, the optimizer step that it began at."""
    steps_lost: int
    """The committed optimizer steps without a recorded draw (of those since the first generation's beginning)."""
    instances: tuple[str, ...] = ()
    """The run's instances in the order of time: more than one if it was resumed under its id in its folder."""
    absent: tuple[AbsentLedgers, ...] = ()
    """The ledgers that are not here, although steps that count are in them."""


def audit(paths: Iterable[Path]) -> Audit:
    """Read the ledgers of all workers of a run, from one folder or from several.

    A torn last line is passed over. Raises `ValueError` for any other line that is no ledger line, and for members that
    disagree about where a generation began or training ended.
    """
    history = read_history(record for path in paths for record in read_ledger(path))
    consumed: dict[int, Counter[int]] = {}
    padding: Counter[int] = Counter()
    steps: dict[int, int] = {}
    void = 0
    for record in history.draws:
        if not history.counts(record):
            void += 1
            continue
        epoch, padded = record["epoch"], record["padding"]
        consumed.setdefault(epoch, Counter()).update(record["samples"][: len(record["samples"]) - padded])
        padding[epoch] += padded
        steps[record["step"]] = epoch
    generations, limits = history.generations, history.limits
    endings = history.endings()
    absent = absent_ledgers(generations, limits, steps)
    doubtful = doubtful_epochs(generations, absent)
    committed = range(min((one.step for one in generations), default=0), limits[-1] if limits else 0)
    return Audit(
        epochs={
            epoch: EpochAudit(
                epoch=epoch,
                consumed=counts,
                padding=padding[epoch],
                left_out=endings[epoch].left_out if epoch in endings else 0,
                why=endings[epoch].why if epoch in endings else "",
                doubtful=epoch in doubtful,
            )
            for epoch, counts in sorted(consumed.items())
        },
        committed_steps=len(steps),
        void_draws=void,
        resume_steps={one.number: one.step for one in generations if one.instance == generations[-1].instance},
        steps_lost=len(set(committed) - steps.keys()),
        instances=tuple(dict.fromkeys(one.instance for one in generations)),
        absent=tuple(absent),
    )


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's lines, and which of its draws count."""

    generations: list[BegunGeneration]
    """In the order of time."""
    limits: list[int]
    """For each of them, the step below which its draws count."""
    draws: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    """The lines of kind `epoch`."""
    places: Mapping[tuple[str, int], int]
    """For each generation's instance and number, its place in the order of time."""

    def place(self, record: Mapping[str, Any]) -> int | None:
        """Return the place of a line's generation in the order of time; `None` if nobody began it."""
        return self.places.get(_generation_of(record))

    def counts(self, draw: Mapping[str, Any]) -> bool:
        """Tell whether a draw's step was committed, and never rolled back."""
        place = self.place(draw)
        return place is not None and bool(draw["step"] < self.limits[place])

    def endings(self) -> dict[int, Ending]:
        """Return how each epoch ended, of those that did."""
        last_draws: dict[int, tuple[int, int]] = {}
        for draw in self.draws:
            place = self.place(draw)
            if place is not None and draw["step"] < self.limits[place]:
                last_draws[draw["epoch"]] = max((place, draw["step"]), last_draws.get(draw["epoch"], (-1, -1)))
        lines = (
            Ending(
                place=place,
                epoch=line["epoch"],
                step=line["step"],
                size=line["size"],
                left_out=line["left_out"],
                why=line["why"],
            )
            for line in self.ends
            if (place := self.place(line)) is not None
        )
        return standing_endings(lines, self.limits, last_draws)


def read_history(records: Iterable[dict[str, Any]]) -> History:
    """Bring the lines of all ledgers together. Raises `ValueError` for members that disagree."""
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _FIELDS}
    for record in records:
        kinds[record["kind"]].append(record)
    generations = in_order_of_time(kinds["begin"])
    places = {(one.instance, one.number): place for place, one in enumerate(generations)}
    done = _agreed_ends(kinds["end"])
    last_step: int | None = None
    if generations:
        last = generations[-1].instance, generations[-1].number
        # A draw for a step is written after the step before it was committed, an epoch's ending after its last step.
        known = [line["step"] for kind in ("draw", "epoch") for line in kinds[kind] if _generation_of(line) == last]
        last_step = done.get(last, max(known, default=None))
    limits = committed_below(generations, last_step)
    return History(generations=generations, limits=limits, draws=kinds["draw"], ends=kinds["epoch"], places=places)


def _generation_of(record: Mapping[str, Any]) -> tuple[str, int]:
    return record.get("instance", ""), record["generation"]


def _agreed_ends(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """Return, for each generation in which training ended, the steps that were committed then."""
    ends: dict[tuple[str, int], int] = {}
    for line in lines:
        step, earlier = line["step"], ends.setdefault(_generation_of(line), line["step"])
        if earlier != step:
            raise ValueError(
                f"two members ended generation {line['generation']} at other steps, {earlier} and {step}; are these the "
                "ledgers of one run?"
            )
    return ends


_FIELDS: dict[Any, dict[str, type | tuple[type, ...]]] = {
    "begin": {"generation": int, "rank": int, "world_size": int, "step": int, "epoch": int},
    "draw": {"generation": int, "rank": int, "epoch": int, "step": int, "samples": list, "padding": int},
    "epoch": {
        "generation": int,
        "rank": int,
        "epoch": int,
        "step": int,
        "size": (int, type(None)),
        "left_out": (int, type(None)),
        "why": str,
    },
    "end": {"generation": int, "rank": int, "step": int},
}


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """Yield one worker's lines, checked, without a torn last line. Raises `ValueError` for any other broken line."""
    data = path.read_bytes()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if not data.endswith(b"\n") and number == data.count(b"\n") + 1:
                return  # torn by kill -9
            raise ValueError(f"{path}:{number}: not a ledger line: {line[:80]!r}") from error
        if isinstance(record, dict) and record.get("v") not in READABLE_VERSIONS:
            raise ValueError(
                f"{path}:{number}: ledger version {record.get('v')!r}, this program reads {readable()}; "
                "read it with the version of dtf-lightning that wrote it"
            )
        if not _is_ledger_line(record):
            raise ValueError(f"{path}:{number}: not a ledger line: {line[:80]!r}")
        yield record


def _is_ledger_line(record: Any) -> bool:
    fields = _FIELDS.get(record.get("kind")) if isinstance(record, dict) else None
    if fields is None or not isinstance(record.get("instance", ""), str):
        return False
    return all(
        name in record and type(record[name]) in (kind if isinstance(kind, tuple) else (kind,))
        for name, kind in fields.items()
    )


def _cut_torn_line_off(path: Path) -> None:
    """Cut off what a killed writer left unfinished, which would otherwise run into the next line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
