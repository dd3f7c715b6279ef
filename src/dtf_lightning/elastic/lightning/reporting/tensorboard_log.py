"""These functions let another process continue the TensorBoard log of a run.

TensorBoard reads the files of a folder in the order of their names, which begin with the time, as one log. An entry
`SessionLog.START` in it voids what was written before for that step and later ones.

Private API touched here: the logger's `_experiment`, the writer's `file_writer`, the names that TensorBoard's writer keeps of its file.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.host.logs import opened

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger(__name__)

FILE_PREFIX = "events.out.tfevents."
TEXT_SUFFIX = "/text_summary"
"""Suffix that TensorBoard adds to a text's name."""
TAIL = 1 << 18
"""Smallest number of bytes that are read from a log's end."""
VALUE_SIZE = 200
"""Largest number of bytes that a value is taken to have in the file."""
MAX_RECORD = 1 << 24
LAYOUT_TAG = "custom_scalars__config__"

WORLD_SIZE = "elastic/world_size"
GENERATION = "elastic/generation"
LR_FACTOR = "elastic/lr_factor"
GLOBAL_BATCH = "elastic/global_batch"
SAMPLES_PER_SECOND = "elastic/samples_per_second"
GOODPUT = "elastic/goodput"
PAUSE = "elastic/pause"
RESCALES = "elastic/rescales"
"""Name of the texts that describe rescales."""

LAYOUT = {
    "Elastic": {
        "workers": ["Multiline", [WORLD_SIZE]],
        "generation": ["Multiline", [GENERATION]],
        "pause of a rescale (seconds)": ["Multiline", [PAUSE]],
        "samples per second": ["Multiline", [SAMPLES_PER_SECOND]],
        "goodput": ["Multiline", [GOODPUT]],
        "global batch": ["Multiline", [GLOBAL_BATCH]],
        "learning rate factor": ["Multiline", [LR_FACTOR]],
    }
}


def add_layout(logger: Any) -> None:
    """Add a page with all elastic curves."""
    logger.experiment.add_custom_scalars(LAYOUT)


def add_text(logger: Any, tag: str, text: str, step: int) -> None:
    """Log a Markdown text; does nothing on other ranks than 0."""
    logger.experiment.add_text(tag, text, step)


def flush(logger: TensorBoardLogger) -> None:
    """Write what was logged to the disk."""
    experiment = opened(logger)
    if experiment is not None:
        experiment.flush()


def go_on(logger: TensorBoardLogger, again: int, num_values: int) -> set[tuple[str, int]]:
    """Continue the log that another process has written; its values of step `again` and later ones become void.

    Args:
        num_values: number of its last values that the caller wants to know, about.

    Returns: (tag, step) of the values at the log's end that are not void.
    """
    folder = Path(logger.log_dir)
    there = set() if "://" in str(logger.log_dir) else _values_at_end(folder, max(TAIL, VALUE_SIZE * num_values))
    experiment: Any = logger.experiment
    _sort_last(experiment, folder)
    if any(step >= again and tag[0] != "_" for tag, step in there):
        from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )

        there = {(tag, step) for tag, step in there if step < again}
        experiment.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), again)
    return there


def _values_at_end(folder: Path, left: int) -> set[tuple[str, int]]:
    """Return (tag, step) of the values in the last `left` bytes; tags of hyperparameters and layout get an underscore."""
    found: set[tuple[str, int]] = set()
    for path in sorted(folder.glob(f"{FILE_PREFIX}*"), reverse=True):
        if left <= 0:
            break
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                start = file.seek(max(0, size - left))
                data = file.read()
        except OSError as error:
            log.debug("%s cannot be read: %s", path, error)
            continue
        left -= len(data)
        found |= set(_values(data, _first_record(data) if start else 0))
    return found


def _values(data: bytes, offset: int) -> Iterator[tuple[str, int]]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    while offset + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        end = offset + 12 + length + 4
        if end > len(data):
            return  # a record that a killed writer has left incomplete
        try:
            event = Event.FromString(data[offset + 12 : end - 4])
        except DecodeError:
            return
        for value in event.summary.value:
            yield (f"_{value.tag}" if value.tag in (LAYOUT_TAG, "hp_metric") else value.tag), event.step
        offset = end


def _first_record(data: bytes) -> int:
    """Return the offset of the first record in data that start anywhere, found by the checksum of its length."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (  # type: ignore[import-untyped]
        masked_crc32c,
    )

    for offset in range(max(0, len(data) - 12)):
        length, checksum = struct.unpack_from("<QI", data, offset)
        if length < MAX_RECORD and masked_crc32c(data[offset : offset + 8]) == checksum:
            return offset
    return len(data)


def _sort_last(experiment: Any, folder: Path) -> None:
    """Rename the new file if an older one sorts behind it: it is of the same second, or of a node whose clock is ahead."""
    with contextlib.suppress(AttributeError, OSError, ValueError, IndexError):
        writer = experiment.file_writer.event_writer
        mine = Path(writer._file_name)
        last = max(path.name for path in folder.glob(f"{FILE_PREFIX}*"))
        if last == mine.name:
            return
        time, rest = mine.name.removeprefix(FILE_PREFIX).split(".", 1)
        later = int(last.removeprefix(FILE_PREFIX).split(".", 1)[0]) + 1
        renamed = mine.with_name(f"{FILE_PREFIX}{max(later, int(time)):010d}.{rest}")
        experiment.flush()
        mine.rename(renamed)
        writer._file_name = str(renamed)
        writer._general_file_writer.filename = str(renamed).encode()
