"""Checkpoints as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.retention import BestN


def summary(records: Sequence[Record], location: str, best: Sequence[BestN] = ()) -> str:
    """Return a table of the kept checkpoints with their metrics, and say which of them are best."""
    if not records:
        return f"checkpoints in {location}: none"
    notes = {
        record.name: f"best {policy.monitor} #{place}"
        for policy in reversed(best)
        for place, record in enumerate(policy.best(records), start=1)
    }
    monitors = [policy.monitor for policy in best] or sorted({name for record in records for name in record.metrics})
    rows = [["step", *monitors, "size", "", "name"]]
    rows += [
        [
            str(record.step),
            *(_metric(record.metrics, monitor) for monitor in monitors),
            size_text(record.size),
            "suspect" if record.suspect else notes.get(record.name, ""),
            record.name,
        ]
        for record in records
    ]
    return "\n".join([f"checkpoints in {location}:", *(f"  {line}" for line in columns(rows))])


def columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield lines with the cells under each other; the last cell is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def size_text(size: float) -> str:
    """Return a number of bytes as text for people: `1.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _metric(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.6g}" if name in metrics else "-"
