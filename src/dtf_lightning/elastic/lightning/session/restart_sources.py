"""Where a worker that was started anew goes on: snapshots, what it has loaded, and the run's own checkpoints, compared.

All ranks go through the same rounds: say what each could give, choose the newest, let its holders read it, and if none
of them can, do without it and choose again. Then those who have it send it to those who do not.

Private API touched here: `BestCheckpoints._location`.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dtf_lightning.elastic.checkpoints.formats import load_verified
from dtf_lightning.elastic.checkpoints.manifest import load as load_manifest
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.storage import Storage, open_storage
from dtf_lightning.elastic.collectives.state_transfer import receive_state, send_state
from dtf_lightning.elastic.data.random_numbers import seed_of, seed_process
from dtf_lightning.elastic.data.random_state import restore_random_state
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.lightning.session import start_world
from dtf_lightning.elastic.lightning.session.state_sharing import go_to_loaded_position
from dtf_lightning.elastic.rules.resume import LoopPhase, Position
from dtf_lightning.elastic.snapshots.choice import Choice, Offer, SourceKind, choose, senders
from dtf_lightning.elastic.snapshots.format import SnapshotDamaged, read_snapshot
from dtf_lightning.errors import CheckpointError, DtfError

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.restart_session import RestartSession

log = logging.getLogger("dtf_lightning")

NUM_FILES = 3
"""Checkpoint files looked into per folder, the newest first: without a manifest only its content tells a file's step."""

Read = Callable[[], dict[str, Any]]
"""Reads what was offered. Raises `OSError` or `DtfError` for what is damaged."""


def resume(session: RestartSession) -> bool:
    """Leave all ranks with the newest state that any of them can give; false if all simply keep what they have.

    A collective. Raises what Lightning raises for a state that does not fit the model.
    """
    readers = _what_i_could_give(session)
    session.beginning = True
    session.resuming = session.loaded_position is not None
    while True:
        everyone: list[list[Offer]] = session._gather(list(readers))
        choice = choose([offer for offers in everyone for offer in offers])
        mine = choice.offer_of(session.strategy.global_rank)
        if choice.kind is SourceKind.LOADED and len(choice.offers) == len(everyone):
            session.progress.trained, session.loaded_position = True, None
            return False
        state = _read(session, choice, mine, readers)
        holders = [rank for rank, has in enumerate(session._gather(state is not None)) if has]
        if holders:
            break
        readers = {offer: read for offer, read in readers.items() if offer.worth != (choice.position, choice.kind)}
    _share(session, choice, state, holders)
    if session.writes_periodically:
        # What could not be read must not pass for newer than what is written from now on.
        session.node.forget_after(choice.position)
    return True


def checkpoint_folders(trainer: Any) -> list[str]:
    """Where the trainer's callbacks save checkpoints."""
    found = []
    for callback in trainer.callbacks:
        if isinstance(callback, BestCheckpoints):
            found.append(callback._location)
        elif isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            found.append(str(callback.dirpath))
    return found


# --- what there is ---------------------------------------------------------------------------------------------------


def _what_i_could_give(session: RestartSession) -> dict[Offer, Read]:
    """This rank's offers. A node's snapshots and checkpoints are offered by its local rank 0."""
    rank, trainer = session.strategy.global_rank, session.trainer
    loaded = replace(session.progress.position(trainer), trained=False)
    readers: dict[Offer, Read] = {
        Offer(rank=rank, kind=SourceKind.LOADED, position=loaded): lambda: training_state.dump_state(
            trainer, session.progress
        )
    }
    if not session.writes_periodically or not session.welcome.joiner:
        return readers
    for stored in session.node.stored():
        header, path = stored.header, stored.path
        if (header.instance, header.signature) == (session.generation.instance, session.signature):
            offer = Offer(rank=rank, kind=SourceKind.SNAPSHOT, position=header.position, where=str(path))
            readers.setdefault(offer, partial(_load_snapshot, path))
    for position, where, read in _checkpoints(session):
        readers[Offer(rank=rank, kind=SourceKind.CHECKPOINT, position=position, where=where)] = read
    return readers


def _checkpoints(session: RestartSession) -> Iterator[tuple[Position, str, Read]]:
    instance = session.generation.instance
    runs = {instance, *(c.run for c in session.trainer.callbacks if isinstance(c, BestCheckpoints) and c.run)}
    for folder in session.record.checkpoint_folders:
        storage = open_storage(folder)
        listed = set()
        for run in sorted(runs):
            try:
                manifest = load_manifest(storage, run).manifest
            except OSError as error:
                log.warning("the checkpoints in %s cannot be listed: %s", folder, error)
                continue
            for record in manifest.records if manifest is not None else ():
                listed.add(record.name)
                if not record.suspect and record.parts:
                    where = storage.location(record.name)
                    yield _saved_at(record.step), where, partial(_load_listed, storage, record)
        yield from _plain_checkpoints(Path(folder), instance, listed)


def _plain_checkpoints(folder: Path, instance: str, listed: set[str]) -> Iterator[tuple[Position, str, Read]]:
    """Files that no manifest lists, as far as this run has written them."""
    try:
        files = sorted(
            (path for path in folder.glob("*.ckpt") if path.is_file() and path.name not in listed),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
    except OSError:  # somebody else removes them meanwhile, or it is not a local folder
        return
    for path in files[:NUM_FILES]:
        try:
            content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
            written_by = content["callbacks"]["ElasticCallback"]["instance"]
            step = int(content["global_step"])
        except Exception as error:  # whatever a damaged, foreign or older file makes of it
            log.debug("%s is no checkpoint of this run: %r", path, error)
            continue
        if written_by == instance:
            yield _saved_at(step), str(path), partial(_load_plain, path)


def _saved_at(step: int) -> Position:
    """What a checkpoint's step says of its place: less than a snapshot's position of the same step."""
    return Position(global_step=step, phase=LoopPhase.ADVANCE_END)


def _load_listed(storage: Storage, record: Record) -> dict[str, Any]:
    return {"checkpoint": load_verified(storage, record)}


def _load_snapshot(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_snapshot(path)[1]
    return state


def _load_plain(path: Path) -> dict[str, Any]:
    """After the zip archive's own checksums were compared. Raises `CheckpointError` or `OSError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is damaged: {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return {"checkpoint": content}


# --- taking it over --------------------------------------------------------------------------------------------------


def _read(
    session: RestartSession, choice: Choice, mine: Offer | None, readers: dict[Offer, Read]
) -> dict[str, Any] | None:
    """The chosen state, if this rank has it and can read it."""
    if mine is None:
        return None
    try:
        return readers[mine]()
    except (OSError, SnapshotDamaged, DtfError) as error:
        log.warning(
            "%s of step %d on %s is damaged and not used, the next best source is: %s",
            *(choice.kind.name.lower(), choice.position.global_step, session.welcome.node, error),
        )
        return None


def _share(session: RestartSession, choice: Choice, state: dict[str, Any] | None, holders: list[int]) -> None:
    rank, trainer, progress = session.strategy.global_rank, session.trainer, session.progress
    sources = senders(holders, session.hosts)
    mine = choice.offer_of(rank) if state is not None else None
    first = mine is not None and all(o.rank >= rank or o.where != mine.where for o in choice.offers)
    if state is None:
        state = receive_state(sources[rank])
    else:
        for receiver in (receiver for receiver, source in sources.items() if source == rank):
            send_state(state, receiver)
    random_state = state.pop("random", None)
    if state.get("run_began") is not None:
        start_world.join(session, state["run_began"])
        session.restored = True
    if "progress" in state:
        # Loggers that number their versions have begun a new one, as whenever Lightning resumes.
        state["start"]["logger_versions"] = [logger.version for logger in trainer.loggers]
        training_state.load_state(trainer, progress, state)
        progress.settle(trainer)
        session.resuming = True
    else:
        training_state.load_checkpoint(trainer, state["checkpoint"])
        session.resuming = session.loaded_position is not None
        if session.loaded_position is not None:
            go_to_loaded_position(session, session.loaded_position)
    session.loaded_position = None
    progress.trained = True
    if random_state is not None:
        restore_random_state(random_state)
        if not first:
            # A stream of its own for whoever did not write this state: nobody's dropout masks may be another's.
            seed_process(seed_of(torch.initial_seed(), int(torch.randint(2**62, ()).item()), rank))
        session.undo.keep_random_state()
    if rank == 0:
        log.info(
            "goes on at step %d from %s: %s",
            *(trainer.global_step, choice.kind.name.lower(), choice.offers[0].where or "what the ranks have loaded"),
        )
