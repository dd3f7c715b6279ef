"""The farm's scheduler: events in, placements out; no clock, no I/O, deterministic."""

from __future__ import annotations

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.scheduler import Scheduler
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES, Candidate, Looks, Strategy
from dtf_lightning.farm.rules.scheduling.values import Placement, ReadyTask, SchedulerSettings, WorkerOffer

__all__ = [
    "STRATEGIES",
    "Candidate",
    "Looks",
    "Need",
    "Placement",
    "ReadyTask",
    "Scheduler",
    "SchedulerSettings",
    "Strategy",
    "WorkerOffer",
]
