"""What a task has reported in `$DTF_FARM_RESULTS` and left as artifacts: metrics, counts of test cases, files.

* Files `*.jsonl` are read as JSON lines: each line is an object, each number in it is a metric; of several of one name
  the last counts. Objects within are named with points: `{"loss": {"train": 1}}` is the metric `loss.train`.
* Files `*.xml` whose root is `testsuite` or `testsuites` are read as JUnit XML: their test cases are counted.
* Every file is an artifact, also those.

What cannot be read is noted and passed over: a task that has done its work does not fail for its report.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtf_lightning.farm.worker.masks.mask import Mask

MAX_METRICS, MAX_ARTIFACTS = 40, 20
"""Of an outcome, which becomes a small record; what exceeds them stands in the artifact `INDEX`."""
MAX_NAME = 128
"""Characters of a metric's name."""
MAX_BYTES = 1 << 26
"""Of a file with metrics or test cases."""
MAX_FILES = 10_000
"""That a task may leave; what it leaves beyond is no artifact."""
INDEX = "index.json"


@dataclass
class Report:
    """What was found. `notes`: sentences on what could not be used."""

    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(
    results: Path,
    folder: Path,
    patterns: Sequence[str],
    index: Path,
    *,
    mask: Mask | None = None,
    copies: Path | None = None,
) -> Report:
    """Read what a task has reported and left.

    Args:
        results: the folder for reports.
        folder: the working folder, in which `patterns` are looked up.
        patterns: of artifacts, relative.
        index: where the list of all artifacts and metrics goes, where there are too many for an outcome.
        mask: takes secrets out of names and texts.
        copies: folder for what has some in it.
    """
    report = Report()
    for path, name in _masked(results, _files(results), report, mask, copies):
        report.artifacts[name] = str(path)
        read = _READERS.get(PurePosixPath(name).suffix)
        if read is None:
            continue
        if path.stat().st_size > MAX_BYTES:
            report.notes.append(f"{name} has more than {MAX_BYTES >> 20} MiB and was not read")
        else:
            read(path, name, report)
    matching = _matching(folder, patterns, report.notes) if patterns else ()
    for path, name in _masked(folder, matching, report, mask, copies):
        report.artifacts.setdefault(name, str(path))
    _shorten(report, index)
    return report


def _masked(
    folder: Path, paths: Iterable[Path], report: Report, mask: Mask | None, copies: Path | None
) -> Iterator[tuple[Path, str]]:
    """Yield files of a folder as they may go out, and their names; what cannot be looked at does not."""
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if mask is None or copies is None:
            yield path, name
            continue
        try:
            yield mask.file(path, copies / uuid.uuid4().hex), mask.text(name)
        except OSError as error:
            report.notes.append(f"{name} is withheld, as it cannot be looked at for secrets: {error.strerror}")


def numbers(body: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of an object and of objects in it, by name; `True` and `False` are none."""
    for name, value in body.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                yield f"{prefix}{name}"[:MAX_NAME], float(value)
            except OverflowError:
                continue


def _read_metrics(path: Path, name: str, report: Report) -> None:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    report.metrics.update(numbers(json.loads(line)))
                except (ValueError, AttributeError, RecursionError):
                    report.notes.append(f"line {number} of {name} is no JSON object")
    except OSError as error:
        report.notes.append(f"{name} cannot be read: {error.strerror}")


def _read_cases(path: Path, name: str, report: Report) -> None:
    from xml.etree import ElementTree as ET

    counts = dict.fromkeys(("tests", "passed", "failed", "errors", "skipped"), 0)
    kinds = {"failure": "failed", "error": "errors", "skipped": "skipped"}
    try:
        root = None
        for event, element in ET.iterparse(path, ("start", "end")):
            if root is None:
                root = element.tag
                if root not in ("testsuite", "testsuites"):
                    return
            if event == "end" and element.tag == "testcase":
                found = next((kinds[child.tag] for child in element if child.tag in kinds), "passed")
                counts["tests"] += 1
                counts[found] += 1
                element.clear()
    except (ET.ParseError, OSError) as error:
        report.notes.append(f"{name} is no JUnit XML: {error}")
        return
    for kind, count in counts.items():
        report.counts[kind] = report.counts.get(kind, 0) + count


_READERS = {".jsonl": _read_metrics, ".xml": _read_cases}


def _matching(folder: Path, patterns: Sequence[str], notes: list[str]) -> Iterator[Path]:
    """Files below the folder; what a link leads to must lie there, too."""
    inside = folder.resolve()
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts or not pattern.strip():
            notes.append(f"the artifacts {pattern!r} are not below the working folder")
            continue
        found = 0
        for match in sorted(folder.glob(pattern)):
            for path in _files(match) if match.is_dir() else [match]:
                if path.is_file() and path.resolve().is_relative_to(inside) and found < MAX_FILES:
                    found += 1
                    yield path
        if not found:
            notes.append(f"no file matches the artifacts {pattern!r}")


def _files(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()][:MAX_FILES]


def _shorten(report: Report, index: Path) -> None:
    if len(report.metrics) <= MAX_METRICS and len(report.artifacts) <= MAX_ARTIFACTS:
        return
    text = json.dumps({"metrics": report.metrics, "artifacts": report.artifacts}, indent=1)
    try:
        index.write_text(text)
    except OSError as error:
        report.notes.append(f"the list of all results cannot be written: {error.strerror}")
    report.notes.append(
        f"{len(report.metrics)} metrics and {len(report.artifacts)} artifacts, of which the first {MAX_METRICS} and "
        f"{MAX_ARTIFACTS} are shown; all are in {INDEX}"
    )
    report.metrics = dict(sorted(report.metrics.items())[:MAX_METRICS])
    report.artifacts = {INDEX: str(index)} | dict(sorted(report.artifacts.items())[: MAX_ARTIFACTS - 1])
