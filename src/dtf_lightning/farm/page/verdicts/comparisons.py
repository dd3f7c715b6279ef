"""What `dtf farm compare --on-farm` has found on this farm: its tasks' output, each verdict recomputed before it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.results.rows import seconds
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.verdicts.pairs.verdict import Verdict

if TYPE_CHECKING:
    from dtf_lightning.farm.server.files import FarmFiles

COMPARE = "dtf farm compare"
"""The name of such a task."""
MAX_OUTPUT = 1 << 20
"""Bytes of its output's end that are looked at: 200 pairs of one metric are 40 kB."""


def read_comparisons(rows: Sequence[Mapping[str, Any]], files: FarmFiles) -> list[dict[str, Any]]:
    """Return the verdicts of tasks, each with its sentence, in the order of the tasks.

    What is no verdict, or one that its samples do not give, is left out: anybody can call a task so.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row["log_bytes"]:
            continue
        size = files.log_size(row["task"], row["revision"])
        start = max(size - MAX_OUTPUT, 0)
        output = files.read_log(row["task"], row["revision"], start, size - start)
        ended = when(seconds(row["ended"]))
        found += [{"task": row["task"], "ended": ended, **verdict} for verdict in verdicts_of(output)]
    return found


@lru_cache(maxsize=64)
def verdicts_of(output: bytes) -> tuple[dict[str, Any], ...]:
    """Return the verdicts that an output ends with. A task's output does not change any more: each is recomputed once."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith('{"verdicts"'):
            try:
                return tuple(_shown(one) for one in json.loads(line)["verdicts"])
            except (ValueError, KeyError, TypeError, AttributeError, DtfError):
                return ()
    return ()


def _shown(body: Mapping[str, Any]) -> dict[str, Any]:
    verdict = Verdict.replay(body["comparison"], body["verdict"])
    look = verdict.look
    return {
        "base": str(body["base"]),
        "candidate": str(body["candidate"]),
        "metric": str(body["comparison"]["metric"]),
        "state": verdict.state.value,
        "sentence": str(body["sentence"]),
        "num_pairs": verdict.num_pairs,
        "estimate": None if look is None else look.estimate,
    }
