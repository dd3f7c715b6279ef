"""`RendezvousBase` is what both of our rendezvous handlers share: the run's name, signals, an end in the right order."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack

from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousParameters

from dtf_lightning.elastic.agent.loop import AgentLoop
from dtf_lightning.elastic.agent.signals import LeaveOnSignal


class RendezvousBase(RendezvousHandler):
    """An implementation of the part of torchelastic's interface that does not depend on the mode.

    Args:
        agent: started; whoever made it put its `close` into `parts`.
        parts: everything that ends with the handler, last made first.
        on_leave: what the first signal to the agent tells the user.
        end_workers: called with the reason when a second signal comes.
    """

    def __init__(
        self,
        params: RendezvousParameters,
        agent: AgentLoop,
        parts: ExitStack,
        *,
        on_leave: str,
        end_workers: Callable[[str], None],
    ) -> None:
        self._backend = params.backend
        self._run_id = params.run_id
        self._loop = agent
        self._parts = parts
        self._signals = LeaveOnSignal(on_leave, agent.leave, end_workers)
        atexit.register(self.close)

    def get_backend(self) -> str:
        return self._backend

    def get_run_id(self) -> str:
        return self._run_id

    def is_closed(self) -> bool:
        return self._loop.exit_reason is not None

    def set_closed(self) -> None:
        """Do nothing: one node's end is not the run's."""

    def shutdown(self) -> bool:
        self.close()
        return True

    def close(self) -> None:
        """Take the node out of the run. Idempotent."""
        atexit.unregister(self.close)
        self._parts.close()
