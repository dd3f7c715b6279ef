"""What a task had asked for, beside what it used. Pure."""

from __future__ import annotations

import math

from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.record.values import Envelope
from dtf_lightning.farm.rules.needs import CPU, MEMORY, needed

MEBIBYTE = 1 << 20


def use_of(envelope: Envelope) -> dict[str, dict[str, float]]:
    """Return `requested` and `used` of the attempt that counts, by resource: cores on average, MiB at most.

    Nothing where no attempt was made, or what was asked for is not kept, or had alternatives.
    """
    asked = unpack(envelope.asked)
    if asked is None or envelope.started is None or envelope.ended is None or len(asked.needs) > 1:
        return {}
    used = {}
    seconds = envelope.ended - envelope.started
    cpu, memory = (envelope.metrics.get(name, math.nan) for name in ("cpu_seconds", "peak_memory"))
    if seconds > 0 and math.isfinite(cpu):
        used[CPU] = round(cpu / seconds, 3)
    if memory > 0 and math.isfinite(memory):
        used[MEMORY] = round(memory / MEBIBYTE, 1)
    return {"requested": dict(needed(asked.needs)[0].amounts), "used": used}
