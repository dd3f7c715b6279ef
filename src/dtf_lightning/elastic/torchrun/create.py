"""`create_handler` makes a rendezvous handler of torchrun's parameters, with etcd, a mode, and all parts of an agent.

What has been made when something fails is ended again, in reverse order.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from dtf_lightning import environment
from dtf_lightning.elastic.agent.host import host_address, node_id
from dtf_lightning.elastic.agent.live.agent import LiveAgent
from dtf_lightning.elastic.agent.loop import AgentLoop
from dtf_lightning.elastic.agent.monitoring.monitor import start_monitor
from dtf_lightning.elastic.agent.notice import NoticePoller, notice_source
from dtf_lightning.elastic.agent.restart.agent import RestartAgent
from dtf_lightning.elastic.agent.restart.spares import Spares
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.run.keys import RESTART
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.elastic.torchrun.last_words import install_last_words
from dtf_lightning.elastic.torchrun.live_handler import LiveRendezvousHandler
from dtf_lightning.elastic.torchrun.modes import (
    num_workers_asked,
    resolve_mode,
    script_arguments,
    started_by_torchrun,
    training_script,
)
from dtf_lightning.elastic.torchrun.restart_handler import RestartRendezvousHandler
from dtf_lightning.etcd.access import EtcdAccess
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog, events_path
from dtf_lightning.processes.quick_end import end_quickly
from dtf_lightning.processes.watchdog_process import Watchdog

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousParameters

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Node:
    """What the parts of a node's agent are made of."""

    params: RendezvousParameters
    settings: AgentSettings
    name: str
    host: str
    store: Store
    event_log: EventLog
    parts: ExitStack
    """The parts that end with the handler."""


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Return the handler for `torchrun --rdzv-backend=etcd`.

    Raises `SettingsError` (flags, --rdzv-conf), `StoreUnavailable`, `AuthenticationFailed` (etcd).
    """
    _log_to_stderr()
    if started_by_torchrun(sys.argv):
        install_last_words()
        end_quickly()
    settings = AgentSettings.from_rdzv_conf(params.min_nodes, params.max_nodes, params.config)
    if settings.notice is not None:
        notice_source(settings.notice)  # its mistakes are the user's to hear of before anything is started
    mode = resolve_mode(settings.mode, training_script(sys.argv), script_arguments(sys.argv))
    with ExitStack() as parts:
        store = _access(settings).connect(params.endpoint)
        parts.callback(store.close)
        if settings.warm and mode != RESTART:
            log.warning("warm=true is of use in restart mode only; this run is live")
        name = node_id()
        # Without a folder in the settings, the log waits until the workers name theirs.
        event_log = EventLog(ELASTIC_EVENTS, events_path(settings.run_dir, name) if settings.run_dir else None)
        node = _Node(
            params=params,
            settings=settings,
            name=name,
            host=host_address(params.local_addr, params.endpoint),
            store=store,
            event_log=event_log,
            parts=parts,
        )
        return _create_restart(node) if mode == RESTART else _create_live(node)


def _create_live(node: _Node) -> RendezvousHandler:
    # Bound to all interfaces; the generation's store for whoever is put on this node.
    tcp_store = dist.TCPStore(node.host, 0, is_master=True, wait_for_workers=False)
    folder = Path(tempfile.mkdtemp(prefix="dtf-"))
    node.parts.callback(shutil.rmtree, folder, ignore_errors=True)
    socket_path = str(folder / "agent.sock")
    environment.write({environment.AGENT_SOCKET: socket_path})
    agent = LiveAgent(
        node.store,
        node.settings,
        node.params.run_id,
        node=node.name,
        host=node.host,
        store_port=tcp_store.port,
        socket_path=socket_path,
        event_log=node.event_log,
    )
    _start(agent, node)
    _start_poller(agent, node)
    return LiveRendezvousHandler(node.params, node.settings, agent, node.parts.pop_all(), tcp_store=tcp_store)


def _create_restart(node: _Node) -> RendezvousHandler:
    node.parts.callback(Watchdog(environment.NODE, node.name).close)
    environment.remove(environment.AGENT_SOCKET)
    folder = Path(tempfile.mkdtemp(prefix="dtf-"))
    node.parts.callback(shutil.rmtree, folder, ignore_errors=True)
    abort_note = folder / "abort"
    environment.write({environment.ABORT_NOTE: str(abort_note)})
    agent = RestartAgent(
        node.store,
        node.settings,
        node.params.run_id,
        node=node.name,
        host=node.host,
        script=Path(training_script(sys.argv)).name,
        abort_note=abort_note,
        event_log=node.event_log,
    )
    _start(agent, node)
    node.parts.callback(agent.workers.kill)  # torchelastic has ended them, unless it was interrupted
    spares = _start_spares(node.settings, agent)
    if spares is not None:
        node.parts.callback(spares.close)
    _start_poller(agent, node)
    return RestartRendezvousHandler(
        node.params, node.settings, agent, node.parts.pop_all(), host=node.host, spares=spares
    )


def _start(agent: AgentLoop, node: _Node) -> None:
    environment.write(
        {
            environment.RUN_ID: node.params.run_id,
            environment.NODE: node.name,
            environment.RUN_DIR: node.settings.run_dir or "",
            environment.WORKERS_IDENTICAL: "0",  # we answer the store in which torchelastic tells its workers' number
        }
    )
    monitor = start_monitor(node.settings, node.params.run_id, node.name, node.host, node.event_log)
    if monitor is not None:
        node.parts.callback(monitor.close)  # after the agent, whose last events it is to see
    node.parts.callback(agent.close)
    agent.start()


def _start_poller(agent: AgentLoop, node: _Node) -> None:
    if node.settings.notice is not None:
        poller = NoticePoller(notice_source(node.settings.notice), node.settings.notice_interval, agent.leave)
        node.parts.callback(poller.close)
        poller.start()


def _start_spares(settings: AgentSettings, agent: RestartAgent) -> Spares | None:
    if not settings.warm:
        return None
    script = training_script(sys.argv)
    if not Path(script).is_file():
        log.warning("warm=true needs torchrun with a script's path (not -m), got %r: workers start cold", script)
        return None
    spares = Spares(script, num_workers_asked(sys.argv), settings.warm_delay, agent.workers.adopt)
    spares.install()
    spares.fill()
    return spares


def _access(settings: AgentSettings) -> EtcdAccess:
    return EtcdAccess(
        ca_cert=settings.ca_cert,
        cert=settings.cert,
        key=settings.key,
        server_name=settings.server_name,
        user=settings.user,
        password_file=settings.password_file,
    )


def _log_to_stderr() -> None:
    """Show this package's log: torchrun configures torch's loggers only, and a generation's reason would not be seen."""
    ours = logging.getLogger("dtf_lightning")
    if ours.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[dtf %(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
