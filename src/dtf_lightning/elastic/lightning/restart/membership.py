"""`RestartMembership` joins workers that torchelastic starts anew on every change, under any of its rendezvous.

Differences from a live run, in the order of a worker's life:

1. there is no agent to connect to: the workers meet on torchelastic's store when `ElasticCallback` is constructed, and
   the world is final from the start;
2. `attach`: all agree on which run this is, and which life of it (the life of a run is the time between two starts of its
   workers), from the records that the nodes keep (`RunRecord`), and say what was edited since the last one
   (`former_life.py`);
3. `enter`: all load the newest intact state among snapshots and checkpoints (`state_source.py`);
4. while training, a snapshot goes into the node's memory every `snapshot_every_n_steps` optimizer steps;
5. after SIGTERM, or the loss of a peer, a worker cuts the process group so that no peer waits for it, goes back to the
   last committed step, writes a snapshot and exits. The workers need not agree on the step: a peer that is in the next
   one cannot commit it alone and rolls it back, and after the restart the newest position wins;
6. where one leaves the training loop and another trains on, both end with a sentence (`stop_news.py`);
7. at the end all wait for each other, then every node keeps the final state until its workers have ended well: the same
   agents may start them anew for what the script does after training, and they do not train again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from dtf_lightning import environment
from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.collectives.gathering import gather_objects
from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.collectives.restart_meeting import PATIENCE, agree_on_word, connect
from dtf_lightning.elastic.collectives.watched_store import WatchedStore
from dtf_lightning.elastic.lightning.checks.fingerprint import script_path
from dtf_lightning.elastic.lightning.restart.former_life import changes, refusal
from dtf_lightning.elastic.lightning.restart.stop_news import StopNews
from dtf_lightning.elastic.lightning.restart.stop_request import StopRequest
from dtf_lightning.elastic.lightning.run.exits import StopForRescale, WorkerLeft, WorkerStopped, leave
from dtf_lightning.elastic.lightning.run.policies import Verdict
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.signals import stopping_signals
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.link.messages import Welcome
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.snapshots.node import NodeSnapshots, RunRecord, agent_name, last_record, run_key
from dtf_lightning.environment import TorchelasticWorld
from dtf_lightning.errors import DtfError, GenerationBroken, PeerError, RunAborted, SettingsError
from dtf_lightning.events.registry import Event

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

PEER_PATIENCE = 10.0
"""Seconds that a worker which has lost a peer waits for its agent to stop it, before it fails by itself, which counts as
a failure of its own node."""
FORM_TIMEOUT = 60.0
"""Seconds that the members have to connect to each other, once all have arrived."""
NOT_OF_THE_RUN = (
    "optimizer", "Trainer(max_epochs)", "Trainer(max_steps)", "torch threads (OMP_NUM_THREADS)", "hardware",
)  # fmt: skip
"""Settings that do not tell one run from another: they are unknown when a worker looks for its run, or may change from
life to life (training continues for longer, or on other machines)."""
SAME_IN_A_LIFE = ("Trainer(max_epochs)", "Trainer(max_steps)", "torch threads (OMP_NUM_THREADS)", "hardware")
"""Those of `NOT_OF_THE_RUN` that must nevertheless be the same for all workers of one life. Optimizers are compared
together with the parameters."""


@dataclass(frozen=True)
class _Peer:
    """Describe one rank to the others when the workers meet."""

    host: str
    node: str
    num_local: int
    settings: dict[str, str]
    records: tuple[RunRecord, ...]
    agent: str
    fresh: str
    """Name of the run's instance, used if this is rank 0 and no node has a record of the run."""


@dataclass
class RestartedRun:
    """Hold what the workers of one life of a run have agreed on."""

    node: NodeSnapshots
    """Snapshots and records that this node keeps of the run."""
    record: RunRecord
    """Record of this life that the node will keep."""
    generation: Generation
    """Generation of this life."""
    hosts: list[str]
    """Host name of each rank, in rank order."""
    former: RunRecord | None = None
    """Record of the life before; `None`: the run begins."""
    parts: tuple[str, ...] = ()
    """The model's parameters and the optimizers' classes, one line each, which a snapshot must match."""

    @property
    def signature(self) -> str:
        """Digest of `parts`."""
        return hashlib.sha256("\n".join(self.parts).encode()).hexdigest()


def describe_model(parameters: Iterable[str], optimizers: Iterable[Any]) -> tuple[str, ...]:
    """Return `RestartedRun.parts` for the lines that `parameter_signature` gave, and the optimizers."""
    kinds = (f"optimizer[{number}] {type(optimizer).__name__}" for number, optimizer in enumerate(optimizers))
    return (*parameters, *kinds)


class RestartMembership:
    """Connect the workers that torchelastic has started together. A `Membership`.

    The constructor raises torch's errors if the workers cannot connect to each other.
    """

    keeps_processes = False

    def __init__(self, world: TorchelasticWorld) -> None:
        self.world = world
        self.stop = StopRequest()
        self.group = GenerationGroup()
        self.run: RestartedRun
        """What the workers have agreed on; set by `attach`."""
        self.lost: Exception | None = None
        """Error of the collective whose failure stopped this worker; `None` if no peer was lost."""
        self._stop_news: StopNews | None = None
        """What this worker knows of where others stop; `None` before training, and where it is alone."""
        self._welcome = _welcome(world)
        meeting = connect(world)
        self._meeting: dist.Store | None = meeting  # kept alive, because rank 0 may host it
        self._word = agree_on_word(meeting, world.rank, world.world_size)
        self.group.form_local(
            host=world.store_host,
            port=world.store_port,
            prefix=f"{self._word}/setup",
            rank=world.rank,
            world_size=world.world_size,
        )

    @property
    def welcome(self) -> Welcome:
        return self._welcome

    # --- meeting -----------------------------------------------------------------------------------------------------

    def attach(self, settings: RunSettings, fingerprint: dict[str, str], run_dir: Path) -> Generation | None:
        """Find out which run this is and return the generation of this life of it, the same on all ranks."""
        compared = {
            name: text for name, text in fingerprint.items() if name not in NOT_OF_THE_RUN or name in SAME_IN_A_LIFE
        }
        of_the_run = {name: text for name, text in compared.items() if name not in SAME_IN_A_LIFE}
        run_id, agent = self._welcome.run_id, agent_name()
        node = NodeSnapshots(
            settings.snapshots,
            key=run_key(run_id, {"script": str(script_path())}, agent),
            run_dir=run_dir,
            agent=agent,
            key_on_disk=run_key(run_id, {}, agent),
        )
        try:
            peers = self._meet(node, compared)
            agents = tuple(dict.fromkeys(peer.agent for peer in peers))
            last = last_record([record for peer in peers for record in peer.records], agents)
            if last is not None:
                self._say_what_differs(last, of_the_run, node)
        except BaseException:
            node.close()
            raise
        number = last.generation + 1 if last is not None else 1
        generation = Generation(
            number=number,
            members=_members(peers, number),
            reason="the workers started" if last is None else f"the workers were started anew, life {number}",
            kind="start" if last is None else _kind(last.world_size, self.world.world_size),
            instance=last.instance if last is not None else peers[0].fresh,
            store_host=self.world.store_host,
            store_port=self.world.store_port,
            formed_at=time.time(),
        )
        record = RunRecord(
            instance=generation.instance,
            generation=number,
            written_at=time.time(),
            world_size=self.world.world_size,
            settings=of_the_run,
            agents=agents,
            checkpoint_folders=last.checkpoint_folders if last is not None else (),
        )
        if last is not None and last.finished:
            both = tuple(dict.fromkeys((*last.agents, *agents)))
            record = replace(record, finished=True, step=last.step, agents=both)
        hosts = [peer.host for peer in peers]
        self.run = RestartedRun(node=node, record=record, generation=generation, hosts=hosts, former=last)
        self._welcome = replace(self._welcome, joiner=last is not None, incarnation=number)
        if self.world.local_rank == 0:
            node.remove_foreign(generation.instance)
        return generation

    def _say_what_differs(self, last: RunRecord, now: dict[str, str], node: NodeSnapshots) -> None:
        """Log what was edited since the last life. Raises `SettingsError` for what must not be."""
        found = changes(last.settings, now)
        problem = refusal(self._welcome.run_id, found, node.places)
        if problem:
            raise SettingsError(problem)
        if found and self.world.rank == 0:
            log.warning(
                "run %r goes on although this is not as it was in its last life: %s",
                *(self._welcome.run_id, "; ".join(map(str, found))),
            )

    def _meet(self, node: NodeSnapshots, settings: dict[str, str]) -> list[_Peer]:
        """Return the descriptions of all ranks, in rank order. Raises `SettingsError` if their settings differ."""
        peers = self.gather(
            _Peer(
                host=socket.gethostname(),
                node=self._welcome.node,
                num_local=self._welcome.num_local_workers,
                settings=settings,
                records=tuple(node.records()),
                agent=agent_name(),
                fresh=uuid.uuid4().hex,
            )
        )
        _refuse_differences(peers)
        return peers

    def get_ready(self, trainer: pl.Trainer) -> None:
        """Keep the optimizers, whose classes a snapshot must match."""
        self._optimizers = list(trainer.optimizers)

    def assignment(self, fingerprint: dict[str, str], parameters: tuple[str, ...], run_dir: Path) -> World:  # noqa: ARG002
        if self.stop.asked():
            raise WorkerStopped(self.stop.reason)
        self.run.parts = describe_model(parameters, self._optimizers)
        signatures = self.gather(self.run.signature)  # here all workers wait for the slowest set-up
        if len(set(signatures)) > 1:
            raise SettingsError(
                "the ranks' models or optimizers differ (names, types or shapes of parameters); all must train the same"
            )
        self.group.destroy()
        return World(generation=self.run.generation, rank=self.world.rank, size=self.world.world_size)

    def gather(self, mine: Any) -> list[Any]:
        """Return every rank's object, in rank order. A collective."""
        return gather_objects(mine)

    def store_prefix(self, generation: Generation) -> str:  # noqa: ARG002  a life has one
        return f"{self._word}/train"

    # --- training ----------------------------------------------------------------------------------------------------

    def active(self, step: int) -> None:  # noqa: ARG002  no agent tracks it
        world, meeting = self.world, self._meeting
        if meeting is None or world.world_size == 1:
            return
        self._stop_news = StopNews(
            meeting,
            lambda: WatchedStore(world.store_host, world.store_port, PATIENCE),
            prefix=f"{self._word}/stops",
            rank=world.rank,
            names=World(generation=self.run.generation, rank=world.rank, size=world.world_size).sources,
            generation=self.run.generation.number,
            on_apart=self._stand_apart,
        )

    def _stand_apart(self, reason: str) -> None:
        """Free the main thread, which waits in a collective that the others do not come to; the run is to end."""
        if (note := environment.read(environment.ABORT_NOTE)) is not None:  # an agent of ours started this worker
            with contextlib.suppress(OSError):
                Path(f"{note}.{self.world.local_rank}").write_text(reason)
                Path(f"{note}.{self.world.local_rank}").replace(note)
        self.group.cut()
        self.stop.wake()

    def at_boundary(self, step: int) -> bool:  # noqa: ARG002
        if self.stop.asked():
            return True
        self.check()
        return False

    def begin_batch(self) -> None:
        self.check()

    def check(self) -> None:
        """Count where this worker is: no agent announces failures; the next collective fails if a peer has stopped."""
        if self._stop_news is not None:
            self._stop_news.passes()

    def before_validation_batch(self, world: World, *, sanity_checking: bool) -> None:
        if not self.stop.asked():
            return
        if sanity_checking:
            raise WorkerStopped(self.stop.reason)
        if world.formed:
            raise StopForRescale  # a validation may take longer than the agent waits; it runs again after the restart

    # --- stopping ----------------------------------------------------------------------------------------------------

    def verdict(self, error: BaseException) -> Verdict:
        if isinstance(error, StopForRescale):
            return Verdict.RESCALE
        failed = not isinstance(error, DtfError) and is_communication_error(error)
        if self._stop_news is not None and isinstance(error, Exception):
            if failed:
                self._stop_news.wait(self.stop.wait)
            if self._stop_news.apart is not None:
                raise RunAborted(self._stop_news.apart) from None
        if isinstance(error, Exception) and (failed or isinstance(error, GenerationBroken)):
            self.lost = error  # a peer is gone, or is not what this worker is
            return Verdict.RESCALE
        return Verdict.GOODBYE if isinstance(error, WorkerLeft) else Verdict.OWN

    def failed(self, error: BaseException) -> None:  # noqa: ARG002  torchelastic sees it
        self.break_off()

    def break_off(self) -> None:
        """Cut the process group at once: peers in the next step's collectives wait for this worker."""
        self.group.cut()
        self.group.hang_up()

    def drop_group(self, *, planned: bool) -> None:  # noqa: ARG002  broken off already
        self.group.destroy()

    def leave_reason(self) -> str | None:
        return self.stop.reason or f"a peer was lost ({self.lost})".splitlines()[0][:300]

    def leave(self, reason: str, step: int) -> None:
        """End this worker: torchelastic starts the next life.

        Raises:
            WorkerStopped: the agent has stopped it.
            RuntimeError: a peer was lost and no signal has stopped this worker within `PEER_PATIENCE` seconds.
        """
        if self.lost is not None and not self.stop.wait(PEER_PATIENCE):
            raise RuntimeError(
                f"a peer was lost and no agent has stopped this worker within {PEER_PATIENCE:g} s; it ends so that it "
                "is started anew"
            ) from self.lost
        log.info("this worker stops at step %d: %s", step, reason)
        leave(WorkerStopped(reason))

    def leaving(self, reason: str) -> None:
        self.stop.ask(reason)

    def loop_ends(self, step: int, reason: str) -> None:
        if self._stop_news is not None:
            self._stop_news.stops(step, reason)

    def finished(self, step: int) -> None:  # noqa: ARG002
        dist.barrier()
        if self._stop_news is not None:
            self._stop_news.close()

    def go_on_alone(self, world: World, what: str, error: Exception) -> None:
        """Wait to be stopped, as all workers are, and started anew with the final state.

        Raises:
            WorkerStopped: the agent has stopped this worker.
            PeerError: it has not, within `PEER_PATIENCE` seconds.
        """
        self.break_off()
        if self.stop.wait(PEER_PATIENCE):
            raise WorkerStopped(self.stop.reason)
        raise PeerError(
            f"a worker of {world.size} went away in {what}, or before it, after the end of training "
            f"({str(error).splitlines()[0][:200]}). Its share of the data is evaluated by nobody, so that there is no result, "
            f"and no agent has stopped this worker within {PEER_PATIENCE:g} s. It ends; with --max-restarts above 0 all are "
            "started anew, take the final state and evaluate again"
        ) from error

    def signals(self) -> AbstractContextManager[None]:
        return stopping_signals(self.stop.ask, self.stop.asked)

    def send(self, event: Event) -> None:
        """Do nothing: no agent listens, and events stay in the run's folder."""

    def close(self) -> None:
        if self._stop_news is not None:
            self._stop_news.close()
        self.group.close()
        self._meeting = None


def _welcome(world: TorchelasticWorld) -> Welcome:
    """Return the message that an agent of this package would have sent."""
    return Welcome(
        run_id=environment.read(environment.RUN_ID) or world.run_id,
        node=environment.read(environment.NODE) or agent_name(),
        joiner=False,
        rank=world.rank,
        world_size=world.world_size,
        store_host=world.store_host,
        store_port=world.store_port,
        incarnation=1,
        num_local_workers=world.num_local_workers,
        heartbeat_interval=1.0,
        rescale_timeout=FORM_TIMEOUT,
    )


def _kind(before: int, now: int) -> str:
    if now == before:
        return "failure"
    return "join" if now > before else "leave"


def _members(peers: list[_Peer], incarnation: int) -> tuple[Member, ...]:
    """Return the run's nodes in rank order."""
    first = {peer.node: peer for peer in reversed(peers)}
    return tuple(
        Member(node=node, incarnation=incarnation, num_workers=first[node].num_local, host=first[node].host)
        for node in dict.fromkeys(peer.node for peer in peers)
    )


def _refuse_differences(peers: list[_Peer]) -> None:
    for rank, peer in enumerate(peers):
        for name, text in peers[0].settings.items():
            if peer.settings.get(name) != text:
                raise SettingsError(
                    f"rank 0 on {peers[0].host} has {name}={text!r}, rank {rank} on {peer.host} "
                    f"{peer.settings.get(name)!r}; all workers of a run must have the same"
                )
