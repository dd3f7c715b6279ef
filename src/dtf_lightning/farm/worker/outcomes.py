"""Makes an attempt's outcome from how its processes ended and from what it has left in its folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from dtf_lightning.farm.calls.returned import read_told, without_error
from dtf_lightning.farm.rules.attempts import TAIL_BYTES, AttemptOutcome, OutcomeKind
from dtf_lightning.farm.worker.folders import AttemptFolder
from dtf_lightning.farm.worker.keeper import hardware_metrics
from dtf_lightning.farm.worker.keeper.messages import End
from dtf_lightning.farm.worker.masks.mask import Mask
from dtf_lightning.farm.worker.orders import AttemptOrder
from dtf_lightning.farm.worker.results import INDEX, Report, collect

log = logging.getLogger(__name__)

MAX_REASON = 1000
"""Characters."""
WITHHELD = (
    "its results and artifacts are withheld: its worker was started anew meanwhile, and could not have its secrets again to take "
    "them out"
)
_NOTHING = Mask()
MAX_READ = 65536
"""Bytes of what a call tells."""


def working_folder(order: AttemptOrder, folder: AttemptFolder) -> Path:
    """Where the attempt runs: its own workspace, or what its order names, seen from there."""
    return folder.work / order.folder


def outcome(order: AttemptOrder, folder: AttemptFolder, end: End, mask: Mask | None = _NOTHING) -> AttemptOutcome:
    """Reads reports and log; what cannot be read stands in the reason. Raises nothing for what a task has left.

    `mask`: takes its secrets out of what it has left; `None`: nobody knows them any more, and nothing of that is told.
    """
    code = end.exit_code if end.status is None else os.waitstatus_to_exitcode(end.status)
    try:
        found = _found(order, folder, mask)
    except Exception as error:  # it has all ways to leave what nobody thought of: its end is told all the same
        log.exception("the results of attempt %s cannot be read", folder.name)
        found = Report(notes=[f"its results cannot be read: {error!r}"])
    if folder.hardware_metrics.exists():
        found.artifacts[hardware_metrics.NAME] = str(folder.hardware_metrics)
        found.metrics = hardware_metrics.summary(folder.hardware_metrics) | dict(found.metrics)
    told = _returned(folder, mask) if order.returns and mask is not None else {}
    why = [told["error"]] if "error" in told and end.kind == OutcomeKind.FAILED.value else []
    reason = (mask or _NOTHING).text("; ".join([*why, end.reason, *found.notes]))
    return AttemptOutcome(
        exit_code=code if code is None or code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        reason=reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}...",
        kind=OutcomeKind(end.kind),
        started=end.started,
        ended=end.ended,
        cpu_seconds=end.cpu_seconds,
        peak_memory=end.peak_memory,
        metrics=found.metrics,
        counts=found.counts,
        artifacts=found.artifacts,
        log_bytes=_size(folder.log),
        tail=tail(folder.log),
        returned=without_error(told),
    )


def _found(order: AttemptOrder, folder: AttemptFolder, mask: Mask | None) -> Report:
    if mask is None:
        return Report(notes=[WITHHELD])
    index = folder.path / INDEX
    return collect(
        folder.results, working_folder(order, folder), order.artifacts, index, mask=mask, copies=folder.masked
    )


def _returned(folder: AttemptFolder, mask: Mask) -> dict[str, Any]:
    try:
        with folder.returned.open("rb") as file:
            return read_told(mask.text(file.read(MAX_READ).decode(errors="replace")))
    except OSError:
        return {}


def tail(log: Path) -> str:
    """The end of the log, at most `TAIL_BYTES` bytes of text; "" without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, _size(log) - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    # What was cut in two, or is no text, became a sign of three bytes.
    while len(text.encode()) > TAIL_BYTES:
        text = text[max(1, (len(text.encode()) - TAIL_BYTES) // 3) :]
    return text


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
