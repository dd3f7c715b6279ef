"""What a farm does by itself about a finding: it cordons a worker on which tests fail that pass elsewhere. Pure.

Rules that this file guards:
- A remedy follows only a finding that has lasted `LASTED` seconds, on a worker that takes tasks.
- Limit: the farm has at most a quarter of the workers cordoned, one at least, and never the last that takes tasks of its device class.
- Cool-down: after the farm has cordoned a worker, it does not do so again for `COOL_DOWN` seconds, so that who undoes it
  (`dtf farm uncordon`) has his way.
- One worker in one look: what the first changes is seen before the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.observation import SeenWorker

LASTED = 60.0
COOL_DOWN = 3600.0
SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Cordon:
    """Give this worker nothing more."""

    worker: str
    reason: str


def cordon_next(
    found: Sequence[Finding], workers: Sequence[SeenWorker], since: Mapping[tuple[str, str], float], now: float
) -> Cordon | None:
    """Return the worker that is to be cordoned now, if one is.

    Args:
        since: (kind, subject) of a finding -> when it began, seconds since the epoch.
        now: seconds since the epoch.
    """
    by_name = {one.name: one for one in workers}
    open_ones = [one for one in workers if one.connected and not one.draining and not one.cordoned]
    cordoned = sum(one.cordoned and bool(one.cordoned_for) for one in workers)
    if cordoned >= max(int(SHARE * len(workers)), 1):
        return None
    for finding in found:
        one = by_name.get(finding.subject)
        if finding.kind != "worker_errors" or one is None or one not in open_ones:
            continue
        lasted = now - since.get((finding.kind, finding.subject), now)
        cooled = not one.cordoned_at or now - one.cordoned_at >= COOL_DOWN
        others = any(other.device == one.device for other in open_ones if other is not one)
        if lasted >= LASTED and cooled and others:
            return Cordon(worker=one.name, reason=finding.reason)
    return None
