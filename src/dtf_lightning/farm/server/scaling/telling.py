"""The pools as the API shows them."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.record.scaling.values import PoolRecord
from dtf_lightning.farm.rules.scaling.decision import PoolDecision
from dtf_lightning.farm.rules.scaling.observation import SeenPool
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.scaling.scaler import FarmPool, Scaler


def show_scaling(scaler: Scaler) -> dict[str, Any]:
    """Return all pools, as they were at the last look of the coordinator that answers."""
    seen = scaler.seen
    return {
        "enabled": bool(scaler.pools),
        "dry_run": scaler.dry_run,
        "timestamp": when(seen.at or None),
        "pools": [
            _pool(one, scaler.record_of(one.name)[0], seen.pools[one.name], seen.decisions[one.name])
            for one in scaler.pools
            if one.name in seen.pools
        ],
        "unserved": [{"task": one.task, "tasks": one.number, "reason": one.reason} for one in seen.unserved],
    }


def _pool(one: FarmPool, record: PoolRecord, seen: SeenPool, decision: PoolDecision) -> dict[str, Any]:
    staying = [worker for worker in seen.workers if not worker.leaving]
    return {
        "name": one.name,
        "provider": one.settings.provider,
        "devices": one.settings.amounts,
        "minimum": seen.limits.minimum,
        "maximum": seen.limits.maximum,
        "workers": {
            "busy": sum(worker.busy for worker in staying),
            "idle": sum(not worker.busy for worker in staying),
            "starting": seen.starting,
            "leaving": len(seen.workers) - len(staying),
        },
        "utilisation": round(seen.utilisation, 3),
        "waiting": seen.waiting,
        "oldest_wait": round(seen.oldest, 1),
        "backlog": round(seen.backlog, 1),
        "cost": seen.limits.cost,
        "budget": seen.limits.budget,
        "spent": round(record.spent, 4),
        "problem": record.problem,
        "decision": {
            "start": decision.start,
            "drain": list(decision.drain),
            "target": decision.target,
            "reason": decision.reason,
        },
        "orders": [{"worker": order.name, "at": when(order.at), "given": order.given} for order in record.orders],
        "steps": [
            {"at": when(step.at), "started": step.started, "drained": list(step.drained), "reason": step.reason}
            for step in reversed(record.steps)
        ],
    }
