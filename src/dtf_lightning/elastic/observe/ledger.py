"""The ledger records which rank drew which samples for which optimizer step of which generation.

Rules that this file guards:

* a draw is written **before** its step: when a step is committed, every member's draw of it is on disk, whoever dies;
* a generation's beginning is written with the step that it resumes at: draws of older generations for that step or a
  later one are void, because the step was rolled back and its samples were drawn again;
* lines are whole or absent (one `write` each, no buffer), so that kill -9 costs at most the line in flight.

So an audit needs no other witness: of a generation's draws, those count whose step lies below the next generation's
resume step.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEDGER_VERSION = 1


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
        _cut_torn_line_off(path)

    def begin(self, *, generation: int, rank: int, world_size: int, step: int, epoch: int) -> None:
        """Record that a generation begins: its next optimizer step is `step` (the steps before it are committed)."""
        self._write(kind="begin", generation=generation, rank=rank, world_size=world_size, step=step, epoch=epoch)

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

    def end(self, *, generation: int, rank: int, step: int) -> None:
        """Record that training came to its end with `step` committed steps."""
        self._write(kind="end", generation=generation, rank=rank, step=step)

    def close(self) -> None:
        """Close the file; nothing may be written afterwards. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, **fields: Any) -> None:
        line = json.dumps({"v": LEDGER_VERSION, **fields}, separators=(",", ":")).encode() + b"\n"
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

    def missing(self, dataset_size: int) -> list[int]:
        return [sample for sample in range(dataset_size) if sample not in self.consumed]

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
    """For each generation, the optimizer step that it began at."""
    steps_lost: int
    """The committed optimizer steps without a recorded draw (of those since the first generation's beginning)."""


def audit(paths: Iterable[Path]) -> Audit:
    """Read the ledgers of all workers of a run.

    A torn last line is passed over. Raises `ValueError` for any other line that is no ledger line, and for members that
    disagree about where a generation began or training ended.
    """
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    draws: list[dict[str, Any]] = []
    for path in paths:
        for record in read_ledger(path):
            match record["kind"]:
                case "begin":
                    _agree(begins, record, f"{path}: two members began generation {record['generation']} at")
                case "end":
                    _agree(ends, record, f"{path}: two members ended generation {record['generation']} at")
                case "draw":
                    draws.append(record)
    limit = committed_below(begins, ends, draws)
    consumed: dict[int, Counter[int]] = {}
    padding: Counter[int] = Counter()
    steps: set[int] = set()
    void = 0
    for record in draws:
        if record["step"] < limit.get(record["generation"], 0):
            epoch, padded = record["epoch"], record["padding"]
            consumed.setdefault(epoch, Counter()).update(record["samples"][: len(record["samples"]) - padded])
            padding[epoch] += padded
            steps.add(record["step"])
        else:
            void += 1
    committed = range(min(begins.values(), default=0), limit[max(limit)] if limit else 0)
    return Audit(
        epochs={
            epoch: EpochAudit(epoch=epoch, consumed=counts, padding=padding[epoch])
            for epoch, counts in sorted(consumed.items())
        },
        committed_steps=len(steps),
        void_draws=void,
        resume_steps=begins,
        steps_lost=len(set(committed) - steps),
    )


def _agree(steps: dict[int, int], record: dict[str, Any], complaint: str) -> None:
    step, earlier = record["step"], steps.setdefault(record["generation"], record["step"])
    if earlier != step:
        raise ValueError(f"{complaint} other steps, {earlier} and {step}; are these the ledgers of one run?")


def committed_below(begins: dict[int, int], ends: dict[int, int], draws: list[dict[str, Any]]) -> dict[int, int]:
    """Return, for each generation, the step below which its draws count.

    It follows from where the generations began and ended, and from all draws.
    """
    if not begins:
        return {}
    last = max(begins)
    # A draw for a step is written after the step before it was committed.
    drawn = [record["step"] for record in draws if record["generation"] == last]
    limit = {last: ends.get(last, max(drawn, default=begins[last]))}
    lowest = begins[last]
    for generation in sorted(begins, reverse=True)[1:]:
        # Whatever any later generation rolled back is void, not only what the next one did: all who had it may be gone.
        limit[generation] = lowest
        lowest = min(lowest, begins[generation])
    return limit


_FIELDS: dict[Any, dict[str, type]] = {
    "begin": {"generation": int, "rank": int, "world_size": int, "step": int, "epoch": int},
    "draw": {"generation": int, "rank": int, "epoch": int, "step": int, "samples": list, "padding": int},
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
        if isinstance(record, dict) and record.get("v") != LEDGER_VERSION:
            raise ValueError(
                f"{path}:{number}: ledger version {record.get('v')!r}, this program reads {LEDGER_VERSION}; "
                "read it with the version of dtf-lightning that wrote it"
            )
        if not _is_ledger_line(record):
            raise ValueError(f"{path}:{number}: not a ledger line: {line[:80]!r}")
        yield record


def _is_ledger_line(record: Any) -> bool:
    fields = _FIELDS.get(record.get("kind")) if isinstance(record, dict) else None
    return fields is not None and all(type(record.get(name)) is kind for name, kind in fields.items())


def _cut_torn_line_off(path: Path) -> None:
    """Cut off what a killed writer left unfinished, which would otherwise run into the next line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
