"""What makes two tasks the same work: a digest of all that was asked for and can change what comes out. Pure.

| enters | does not |
|---|---|
| project, command (of a call its function and arguments), folder | name, plan, key, ids |
| the files that it begins with, and its inputs, all by their digests | priority, time limit, expiry, retries |
| its variables; of secrets their names | values of secrets, which the farm does not know |
| devices and labels that it needs (a device class, software), whether it is alone on its worker | memory, which is only enough or not |
| workers of its gang; of an array's instance its number | what it comes after, limits, workers that it avoids |
| patterns of the artifacts that it leaves; what its command may do with the farm | |

Rules that this file guards:
- Of what enters, two texts are the same only if all of it is: the digest is of one JSON text, with its names.
- A field that has its default is as if it were not given, so that fields which later releases add change no digest of before.
- The project enters: a result is given to nobody who could not have read it before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dtf_lightning.farm.rules.needs import DEFAULT_NEED, MEMORY, quantised

VERSION = 1
"""Of what enters, and how: results of another version are not found."""
AS_GIVEN = (
    "project", "command", "call", "folder", "source", "inputs", "environment", "gang", "index", "artifacts", "permissions",
)  # fmt: skip
"""Fields of a specification that enter as they are."""
ANY_AGE = 100 * 365 * 86400.0
"""Seconds: however old a result is, it may be used again."""


def fingerprint(asked: Mapping[str, Any]) -> str:
    """Return the digest (SHA-256, hexadecimal) of what was asked for.

    Args:
        asked: a task's specification as a JSON object, without the fields that have their defaults.
    """
    enters = {name: asked[name] for name in AS_GIVEN if name in asked}
    enters["needs"] = _needs(asked.get("needs") or [{"amounts": dict(DEFAULT_NEED.amounts)}])
    enters["secrets"] = sorted(set(asked.get("secrets", ())))
    enters["version"] = VERSION
    text = json.dumps(enters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _needs(alternatives: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The alternatives, in whatever order, since any of them would have done."""
    told = {json.dumps(_need(one), sort_keys=True) for one in alternatives}
    return sorted(told)


def _need(need: Mapping[str, Any]) -> dict[str, Any]:
    amounts = quantised(need.get("amounts") or {})
    return {
        "amounts": {name: amount for name, amount in amounts.items() if name != MEMORY},
        "labels": sorted(set(need.get("labels", ()))),
        "exclusive": bool(need.get("exclusive")),
    }
