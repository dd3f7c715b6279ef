"""Where a farm keeps what a backup holds, and how its files are named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

SUFFIX = ".dtf-backup"


@dataclass(frozen=True, kw_only=True)
class FarmPlaces:
    """The places of one farm."""

    farm: str
    folder: Path
    """Of the farm's files."""
    archive: str
    """A folder, or a URL for fsspec."""
    token_file: Path | None = None
    """Of the farm's own token; `None`: it is neither kept nor written."""
    database: Path | None = None
    """Of results, where it does not lie in the folder."""


def file_name(farm: str, wall: float) -> str:
    """Return a backup's name in a folder of many. `wall`: seconds since the epoch."""
    return f"{quote(farm, safe='')}-{datetime.fromtimestamp(wall, UTC):%Y%m%dT%H%M%SZ}{SUFFIX}"


def superfluous(names: Iterable[str], farm: str, keep: int) -> list[str]:
    """Return backups of this farm beyond the newest `keep`, by the times in their names; other files are nobody's business."""
    pattern = re.compile(re.escape(quote(farm, safe="")) + r"-\d{8}T\d{6}Z" + re.escape(SUFFIX))
    return sorted(filter(pattern.fullmatch, names), reverse=True)[keep:]
