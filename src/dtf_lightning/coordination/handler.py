"""torchelastic's rendezvous handler for live runs: an adapter around the agent.

Every agent is a torchelastic group of one node, so that torchelastic starts, watches and restarts the local workers and
knows nothing of the others: joiners and failures elsewhere never make it stop ours. What torchelastic hands to the
workers as MASTER_PORT is no port but the explanation that a stock DDP script needs to see.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from dtf_lightning import environment
from dtf_lightning.coordination.agent import Agent
from dtf_lightning.coordination.host import host_address, node_id
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.store import Store
from dtf_lightning.events import EventLog, events_path
from dtf_lightning.settings import AgentSettings

log = logging.getLogger(__name__)

ROLE_INFO_KEY = "torchelastic/role_info/0"
"""torchelastic writes the number of local workers here, just before it starts them; nobody else tells a handler."""
WAYS_OUT = (
    "add `ElasticCallback()` from dtf_lightning to the Lightning Trainer's callbacks, or (not there yet) run with "
    "`--rdzv-conf mode=restart`"
)
NO_MASTER_PORT = (
    "none: live dtf-lightning run, which makes the process groups itself. Add ElasticCallback() to the Trainer's "
    "callbacks, or (not there yet) torchrun --rdzv-conf mode=restart"
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
    ) -> None:
        self._tcp_store = tcp_store  # lives as long as the agent: workers' groups are made on it
        self._socket_dir = socket_dir
        self._backend = params.backend
        self._run_id = params.run_id
        self._settings = settings
        self._agent = agent
        self._store = store
        self._num_starts = 0
        self._num_signals = 0
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
        self._install_signal_handlers()
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
        self._agent.close()
        self._store.close()
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    # --- signals -----------------------------------------------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        """Take SIGTERM and SIGINT over: the first leaves gracefully, the second at once.

        torchelastic installs its own handlers, when it starts the workers, for the signals that the variable lists.
        """
        if self._num_starts or threading.current_thread() is not threading.main_thread():
            return
        names = [name.strip() for name in (environment.read(environment.SIGNALS_TO_HANDLE) or "").split(",")]
        others = [name for name in names if name and name not in ("SIGTERM", "SIGINT")]
        environment.write({environment.SIGNALS_TO_HANDLE: ",".join(others) or "SIGHUP"})
        for handled in (signal.SIGTERM, signal.SIGINT):
            signal.signal(handled, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._num_signals += 1
        if self._num_signals == 1:
            # os.write: print() may hold the lock of the very buffer that this handler interrupted.
            os.write(
                sys.stderr.fileno(),
                f"\n{name}: this node leaves run {self._run_id!r} at the next step boundary (at most "
                f"{self._settings.grace_period:g} s); once more to stop it at once.\n".encode(),
            )
            self._agent.leave(name)
            return
        self._agent.end_workers(f"second {name}")
        raise SignalException(f"{name}, the second signal: stopped at once", signal.Signals(number))


def create_handler(params: RendezvousParameters) -> LiveRendezvousHandler:
    """The handler for `torchrun --rdzv-backend=etcd`.

    Raises `SettingsError` (flags, --rdzv-conf), `StoreUnavailable`, `AuthenticationFailed` (etcd).
    """
    _log_to_stderr()
    settings = AgentSettings.from_rdzv_conf(params.min_nodes, params.max_nodes, params.config)
    if settings.mode != "live":
        raise SettingsError(f"--rdzv-conf mode={settings.mode}: not there yet, this version knows mode=live only")
    store = connect(params.endpoint, **_credentials(settings))
    host = host_address(params.local_addr, params.endpoint)
    node = node_id()
    # Bound to all interfaces; the generation's store for whoever is put on this node.
    tcp_store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    socket_dir = Path(tempfile.mkdtemp(prefix="dtf-"))
    agent = Agent(
        store,
        settings,
        params.run_id,
        node=node,
        host=host,
        store_port=tcp_store.port,
        socket_path=str(socket_dir / "agent.sock"),
        event_log=EventLog(events_path(settings.run_dir, node) if settings.run_dir else None),
    )
    environment.write(
        {
            environment.AGENT_SOCKET: str(socket_dir / "agent.sock"),
            environment.RUN_ID: params.run_id,
            environment.NODE: node,
            environment.RUN_DIR: settings.run_dir or "",
            environment.WORKERS_IDENTICAL: "0",  # a group of one has nothing to gain, and we read that store
        }
    )
    agent.start()
    return LiveRendezvousHandler(params, settings, agent, store, tcp_store, socket_dir)


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
