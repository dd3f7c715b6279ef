"""`current_run` returns the run that this process is a worker of."""

from __future__ import annotations

from dtf_lightning import environment
from dtf_lightning.elastic.lightning.restart.membership import RestartMembership
from dtf_lightning.elastic.lightning.restart.state_source import SnapshotState
from dtf_lightning.elastic.lightning.run.live import LiveMembership, PeerState
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.worker_run import WorkerRun

_current: WorkerRun | None = None


def current_run(settings: RunSettings | None = None) -> WorkerRun | None:
    """Return this process's run, made on the first call; `None` where torchrun has not started the process.

    Under this package's rendezvous an agent listens on a socket and the run is in live mode; under any other rendezvous
    of torchelastic it is in restart mode. `settings` that are given in a later call replace the earlier ones.
    """
    global _current
    if _current is None:
        _current = _check_in(settings or RunSettings())
    elif settings is not None:
        _current.settings = settings
    return _current


def _check_in(settings: RunSettings) -> WorkerRun | None:
    socket_path, world = environment.agent_socket(), environment.torchelastic_world()
    if socket_path is not None:
        live = LiveMembership(socket_path)
        return WorkerRun(settings, live, PeerState(live.link))
    if world is not None:
        membership = RestartMembership(world)
        return WorkerRun(settings, membership, SnapshotState(membership))
    return None
