"""torchelastic's rendezvous handler for live runs: an adapter around the agent.

Every agent is a torchelastic group of one node, so that torchelastic starts, watches and restarts the local workers and
knows nothing of the others: joiners and failures elsewhere never make it stop ours. What torchelastic hands to the
workers as MASTER_PORT is no port but the explanation that a stock DDP script needs to see.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from dtf_lightning import environment
from dtf_lightning.elastic.agent.host import host_address, node_id
from dtf_lightning.elastic.agent.live.agent import Agent
from dtf_lightning.elastic.agent.monitor import Monitor, start_monitor
from dtf_lightning.elastic.agent.notice import NoticePoller, notice_source
from dtf_lightning.elastic.agent.restart.spares import Spares
from dtf_lightning.elastic.agent.signals import LeaveOnSignal
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.elastic.torchrun.modes import num_workers_asked, resolve_mode, training_script
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog, events_path

log = logging.getLogger(__name__)

ROLE_INFO_KEY = "torchelastic/role_info/0"
"""torchelastic writes the number of local workers here, just before it starts them; nobody else tells a handler."""
WAYS_OUT = (
    "add `ElasticCallback()` from dtf_lightning to the Lightning Trainer's callbacks, or run the script as it is with "
    "`--rdzv-conf mode=restart`"
)
NO_MASTER_PORT = (
    "none: live dtf-lightning run, which makes the process groups itself. Add ElasticCallback() to the Trainer's "
    "callbacks, or torchrun --rdzv-conf mode=restart"
)
"""What a stock script's `int(MASTER_PORT)` shows in its ValueError, which is cut after 200 characters."""


class LiveRendezvousHandler(RendezvousHandler):
    """Implements torchelastic's interface; every method translates and delegates."""

    def __init__(
        self,
        params: RendezvousParameters,
        settings: AgentSettings,
        agent: Agent,
        store: Store,
        tcp_store: dist.Store,
        socket_dir: Path,
        poller: NoticePoller | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self._poller = poller
        self._monitor = monitor
        self._tcp_store = tcp_store  # lives as long as the agent: workers' groups are made on it
        self._socket_dir = socket_dir
        self._backend = params.backend
        self._run_id = params.run_id
        self._settings = settings
        self._agent = agent
        self._store = store
        self._num_starts = 0
        text = f"this node leaves run {self._run_id!r} at the next step boundary (at most {settings.grace_period:g} s)"
        self._signals = LeaveOnSignal(text, agent.leave, agent.end_workers)
        self._group_store: dist.Store | None = None
        atexit.register(self.close)

    def get_backend(self) -> str:
        return self._backend

    def get_run_id(self) -> str:
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Start a new incarnation of this node's workers.

        Raises what `Agent.await_start` raises, and `RendezvousClosedError` for workers that fail after their run.
        """
        self._signals.install()
        if self._num_starts and self._agent.workers_went_home:
            raise RendezvousClosedError(
                f"a worker failed after it had left run {self._run_id!r} or the run had finished; starting it again "
                "would train nothing. See the worker's own error above"
            )
        self._agent.await_start()
        self._num_starts += 1
        self._group_store = dist.HashStore()
        threading.Thread(
            target=self._tell_num_workers, args=(self._group_store,), daemon=True, name="dtf-num-workers"
        ).start()
        # torchelastic only ever turns the port into a string.
        no_port = cast("int", NO_MASTER_PORT)
        return RendezvousInfo(self._group_store, 0, 1, RendezvousStoreInfo("live-run.invalid", no_port))

    def _tell_num_workers(self, store: dist.Store) -> None:
        store.wait([ROLE_INFO_KEY])
        self._agent.workers_starting(int(json.loads(store.get(ROLE_INFO_KEY))["local_world_size"]))

    def num_nodes_waiting(self) -> int:
        """0: a group of one node never changes. Raises what `Agent.check` raises, and for a script without callback."""
        self._agent.check()
        timeout = self._settings.attach_timeout
        if self._agent.num_missing and self._agent.running_for > timeout:
            raise RendezvousError(
                f"{self._agent.num_missing} workers of this node have not constructed `ElasticCallback` within "
                f"{timeout:g} s (--rdzv-conf attach_timeout={timeout:g}), so nothing holds this run together. "
                f"Two ways out: {WAYS_OUT}."
            )
        return 0

    def is_closed(self) -> bool:
        return self._agent.parting is not None

    def set_closed(self) -> None:
        """Nothing: one node's end is not the run's."""

    def shutdown(self) -> bool:
        self.close()
        return True

    def close(self) -> None:
        """Take the node out of the run. Idempotent."""
        atexit.unregister(self.close)
        if self._poller is not None:
            self._poller.close()
        self._agent.close()
        if self._monitor is not None:
            self._monitor.close()
        self._store.close()
        shutil.rmtree(self._socket_dir, ignore_errors=True)


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """The handler for `torchrun --rdzv-backend=etcd`.

    Raises `SettingsError` (flags, --rdzv-conf), `StoreUnavailable`, `AuthenticationFailed` (etcd).
    """
    _log_to_stderr()
    settings = AgentSettings.from_rdzv_conf(params.min_nodes, params.max_nodes, params.config)
    if settings.notice is not None:
        notice_source(settings.notice)  # its mistakes are the user's to hear of before anything is started
    store = connect(params.endpoint, **_credentials(settings))
    host = host_address(params.local_addr, params.endpoint)
    mode = resolve_mode(settings.mode, training_script(sys.argv))
    if settings.warm and mode != "restart":
        log.warning("warm=true is of use in restart mode only; this run is live")
    create = _create_restart_handler if mode == "restart" else _create_live_handler
    return create(params, settings, store, host, node_id())


def _create_live_handler(
    params: RendezvousParameters, settings: AgentSettings, store: Store, host: str, node: str
) -> RendezvousHandler:
    # Bound to all interfaces; the generation's store for whoever is put on this node.
    tcp_store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    socket_dir = Path(tempfile.mkdtemp(prefix="dtf-"))
    event_log = _event_log(settings, node)
    agent = Agent(
        store,
        settings,
        params.run_id,
        node=node,
        host=host,
        store_port=tcp_store.port,
        socket_path=str(socket_dir / "agent.sock"),
        event_log=event_log,
    )
    environment.write({environment.AGENT_SOCKET: str(socket_dir / "agent.sock")})
    _tell_workers(params, settings, node)
    agent.start()
    poller = _start_poller(settings, agent.leave)
    monitor = start_monitor(settings, params.run_id, node, host, event_log)
    return LiveRendezvousHandler(params, settings, agent, store, tcp_store, socket_dir, poller, monitor)


def _create_restart_handler(
    params: RendezvousParameters, settings: AgentSettings, store: Store, host: str, node: str
) -> RendezvousHandler:
    # Imported here: a live run has no use for it.
    from dtf_lightning.elastic.agent.restart.agent import RestartAgent
    from dtf_lightning.elastic.agent.restart.local_workers import Watchdog
    from dtf_lightning.elastic.torchrun.restart_handler import RestartRendezvousHandler

    watchdog = Watchdog(node)
    event_log = _event_log(settings, node)
    script = Path(training_script(sys.argv)).name
    agent = RestartAgent(store, settings, params.run_id, node=node, host=host, script=script, event_log=event_log)
    environment.remove(environment.AGENT_SOCKET)
    _tell_workers(params, settings, node)
    agent.start()
    spares = _start_spares(settings, agent.workers.adopt)
    poller = _start_poller(settings, agent.leave)
    monitor = start_monitor(settings, params.run_id, node, host, event_log)
    return RestartRendezvousHandler(params, settings, agent, store, host, watchdog, poller, spares, monitor)


def _start_spares(settings: AgentSettings, adopt: Callable[[int], None]) -> Spares | None:
    if not settings.warm:
        return None
    script = training_script(sys.argv)
    if not Path(script).is_file():
        log.warning("warm=true needs torchrun with a script's path (not -m), got %r: workers start cold", script)
        return None
    spares = Spares(script, num_workers_asked(sys.argv), settings.warm_delay, adopt)
    spares.install()
    spares.fill()
    return spares


def _start_poller(settings: AgentSettings, leave: Callable[[str, float | None], None]) -> NoticePoller | None:
    if settings.notice is None:
        return None
    poller = NoticePoller(notice_source(settings.notice), settings.notice_interval, leave)
    poller.start()
    return poller


def _event_log(settings: AgentSettings, node: str) -> EventLog:
    """Without a folder in the settings, the log waits until the workers name theirs."""
    return EventLog(ELASTIC_EVENTS, events_path(settings.run_dir, node) if settings.run_dir else None)


def _tell_workers(params: RendezvousParameters, settings: AgentSettings, node: str) -> None:
    environment.write(
        {
            environment.RUN_ID: params.run_id,
            environment.NODE: node,
            environment.RUN_DIR: settings.run_dir or "",
            environment.WORKERS_IDENTICAL: "0",  # we answer the store in which torchelastic tells its workers' number
        }
    )


def _credentials(settings: AgentSettings) -> dict[str, Any]:
    password = None
    if settings.password_file is not None:
        try:
            password = Path(settings.password_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"cannot read the etcd password from {settings.password_file}: {error}") from error
    return {
        "ca": settings.ca_cert,
        "cert": settings.cert,
        "key": settings.key,
        "server_name": settings.server_name,
        "user": settings.user,
        "password": password,
    }


def _log_to_stderr() -> None:
    """torchrun configures torch's loggers only: without this nobody would see why a generation was formed."""
    ours = logging.getLogger("dtf_lightning")
    if ours.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[dtf %(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
