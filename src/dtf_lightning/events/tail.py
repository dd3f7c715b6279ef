"""Follows event logs while they grow: for whoever shows a run that trains."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dtf_lightning.events.registry import Event, EventLogError, EventRegistry


class EventTail:
    """The logs in a run's folder, read from where the last look stopped up to the last whole line of each.

    Args:
        registry: of the product whose logs these are.
        folder: the run's; it need not exist yet.
        patterns: of the logs' names below `events/`.
    """

    def __init__(self, registry: EventRegistry, folder: str | Path, patterns: tuple[str, ...] = ("*.jsonl",)) -> None:
        self._parse = registry.parse
        self._folder = Path(folder) / "events"
        self._patterns = patterns
        self._read: dict[Path, int] = {}
        self.num_broken = 0
        """Lines passed over: broken, or of a newer version."""

    def look(self) -> list[Event]:
        """What is new, in time order. A file that cannot be read now is read later."""
        found: list[Event] = []
        for path in sorted({path for pattern in self._patterns for path in self._folder.glob(pattern)}):
            with contextlib.suppress(OSError):
                found += self._new(path)
        return sorted(found, key=lambda event: event.at)

    def _new(self, path: Path) -> list[Event]:
        offset = self._read.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read[path] = offset + len(whole) + len(newline)
        found = []
        for line in whole.splitlines():
            try:
                found.append(self._parse(line))
            except (EventLogError, UnicodeDecodeError):
                self.num_broken += 1
        return found
