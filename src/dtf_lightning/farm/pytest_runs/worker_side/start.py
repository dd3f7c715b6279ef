"""The call that a shard's task is: makes the worker's folder what the sender's was, and becomes the process that runs the tests.

    dtf_lightning.farm.pytest_runs.worker_side.start:begin(".dtf-pytest.json")

Rules that this file guards:
- Modules are found where they were found by the sender, as far as they came along, before any that is installed: a worker on the
  sender's machine must not test the sender's own folder by way of an editable installation. Processes that tests start find
  them there, too.
- Nothing of this package is in the tests' process before they import it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dtf_lightning import environment

SHARD = ".dtf-pytest.json"
"""Place of the shard's file in the folder of its task."""
RUNNER = Path(__file__).with_name("runner.py")


def begin(place: str) -> None:
    """Become the process that runs the shard of this file. Returns never; raises `OSError` if Python cannot be started."""
    here = Path.cwd()
    shard = json.loads(Path(place).read_text())
    depth = len(Path(shard["folder"]).parts)
    top = here.parents[depth - 1] if depth else here
    # Out of the tests' sight, and gone with the attempt.
    moved = Path(tempfile.mkdtemp(prefix="dtf-pytest-"), "shard.json")
    shutil.move(place, moved)
    shard["top"], shard["moved"] = str(top), str(moved.parent)
    shard["arguments"] = [word.replace(shard["sender_top"], str(top)) for word in shard["arguments"]]
    moved.write_text(json.dumps(shard))
    searched = [str(top / part) for part in shard["path"] if (top / part).exists()]
    python: Sequence[str] = shard["python"] or [sys.executable]
    variables = environment.for_child({}, without_prefix=environment.FARM_RETURNED)
    given = [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
    variables["PYTHONPATH"] = os.pathsep.join([*searched, *given])
    sys.stdout.flush()
    os.execvpe(python[0], [*python, "-P", str(RUNNER), str(moved)], variables)
