"""A comparison on a farm: one task that has a worker for itself runs all pairs there, and its verdicts come back and are checked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.book import Kept
from dtf_lightning.farm.compare.session import Compared
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.sources import pack
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison
from dtf_lightning.farm.verdicts.pairs.verdict import Verdict

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client

DTF = 'if command -v dtf > /dev/null; then exec dtf "$@"; else exec python3 -m dtf_lightning "$@"; fi'
DECIDED = (0, 1, 3)
"""Exit codes of a comparison that came to a verdict."""
_TAIL = 2000


def compare_on_farm(
    farm: Client, words: Sequence[str], needs: Sequence[Mapping[str, Any]], folder: Path, *, timeout: float
) -> list[Kept]:
    """Run `dtf farm compare WORDS` on one worker, with this folder's files, and return its verdicts.

    Args:
        words: options and the two commands.
        needs: what the worker must offer, as the API takes it; nothing else runs there meanwhile.
        timeout: seconds for the whole task.

    Raises `SettingsError` for a comparison that came to no verdict there, `ReplayDiffers` for one that its samples do not give,
    and what `Client` raises. Ctrl-C cancels the task.
    """
    task = new_task_id(time.time())
    request: dict[str, Any] = {
        "task_id": task,
        "name": "dtf farm compare",
        "command": ["/bin/sh", "-c", DTF, "dtf", "farm", "compare", "--json", *words],
        "needs": [{**need, "exclusive": True} for need in needs or [{"amounts": {"cpu": 1.0}, "labels": []}]],
        # Verdicts are kept where they are asked for; there they go with the task's workspace.
        "environment": {environment.FARM_HOME: ".dtf-compare"},
        "timeout": timeout,
    }
    source = pack(folder)
    if source.num_files:
        request["source"], request["folder"] = farm.send_source(source), source.folder
    farm.submit_all([request])
    try:
        ended = farm.wait(task)
    except KeyboardInterrupt:
        farm.cancel(task, "Ctrl-C")
        raise
    output = b"".join(farm.logs(task)).decode(errors="replace")
    found = verdicts_in(output)
    if found is None or ended.exit_code not in (None, *DECIDED):
        raise SettingsError(
            f"the comparison came to no verdict on the farm (task {task}: {ended.reason or ended.status}); its output ends:\n"
            f"{output[-_TAIL:].strip() or '(nothing)'}"
        )
    return [kept_of(one) for one in found]


def verdicts_in(output: str) -> list[dict[str, Any]] | None:
    """Return what the last line says that is an outcome of `dtf farm compare --json`; `None` where there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith('{"verdicts"'):
            try:
                return list(json.loads(line)["verdicts"])
            except (ValueError, KeyError, TypeError):
                return None
    return None


def shown(kept: Kept) -> dict[str, Any]:
    """Return a verdict with all of its samples as JSON can hold it."""
    return {
        "id": kept.verdict,
        "made": kept.made,
        "base": kept.base,
        "candidate": kept.candidate,
        "machine": kept.machine,
        "sentence": kept.sentence,
        "verdict": kept.compared.verdict.to_json(),
        "comparison": kept.compared.comparison.to_json(),
    }


def kept_of(body: Mapping[str, Any]) -> Kept:
    """Read what `shown` gave, and recompute the verdict. Raises what `Verdict.replay` raises."""
    verdict = Verdict.replay(body["comparison"], body["verdict"])
    return Kept(
        verdict=str(body["id"]),
        made=float(body["made"]),
        base=str(body["base"]),
        candidate=str(body["candidate"]),
        machine=str(body["machine"]),
        sentence=str(body["sentence"]),
        compared=Compared(comparison=Comparison.from_json(body["comparison"]), verdict=verdict),
    )
