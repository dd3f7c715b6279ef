"""Settings of a run, checked where they are made. Durations are float seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """How generations are decided. All agents of a run use the same."""

    min_nodes: int
    """Below this the run pauses."""
    max_nodes: int
    """Above this a node waits as a spare."""
    stability_window: float = 0.2
    """Changes (joins, leaves) that come within this time of each other enter one generation."""
    initial_window: float = 2.0
    """The same for the first generation, where nodes start minutes apart or at once."""
    max_wait: float = 10.0
    """A steady stream of joins postpones a generation no longer than this."""
    rescale_timeout: float = 60.0
    """A member that has not answered or unwound by then is out."""
    heartbeat_interval: float = 1.0
    heartbeat_timeout: float = 10.0
    """Silence of a worker after which its agent ends it; must exceed three heartbeats."""
    max_consecutive_failures: int = 10
    """Unplanned rescales in a row, none of which lived for `failure_window`, after which the run aborts."""
    failure_window: float = 60.0
    failure_tolerance: float = 1.0
    """Share of the world that may fail within `failure_window`; more aborts the run."""


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """How one agent talks to etcd, to its peers and to its workers."""

    elastic: ElasticSettings
    mode: str = "live"
    lease_ttl: float = 5.0
    grace_period: float = 30.0
    """From SIGTERM to the end of the workers, for a graceful leave."""
    attach_timeout: float = 300.0
    """A worker that has not constructed `ElasticCallback` by then is a stock script: error."""
    mesh: bool = True
