"""These exceptions tell the cause of an error: the user's settings, a peer, the store, or a bug of this package.

Every message says what was attempted, what was got, what was expected and what to do. Public: a script may catch them.
"""

from __future__ import annotations


class DtfError(Exception):
    """Base of every exception that this package raises on purpose."""


class SettingsError(DtfError, ValueError):
    """The user's settings, flags, model or data cannot work; nothing was started or lost."""


class StoreError(DtfError):
    """etcd answered with an error, or not at all."""


class StoreUnavailable(StoreError):
    """No endpoint answered in time. A read or an idempotent write may be tried again."""


class CoordinatorEnds(StoreUnavailable):
    """A farm's coordinator ends, and shows no more changes: who waits for one has to ask another, or the next."""


class OutcomeUnknown(StoreError):
    """A write was sent but its answer did not come: it may or may not have been applied."""


class WatchCompacted(StoreError):
    """etcd has compacted the watch's start revision; read the prefix again and watch from there."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(
            f"the watch asked for events that etcd has compacted (oldest revision left: {compact_revision}); "
            "read the prefix again and watch from the answer's revision"
        )
        self.compact_revision = compact_revision


class RevisionCompacted(StoreError):
    """A read at a revision that etcd has compacted meanwhile; read at a newer one."""


class StoreFull(StoreError):
    """etcd's database has reached its quota: it takes deletes, but no writes and no leases, until its alarm is off.

    To recover: delete, compact, defragment, and then switch the alarm off.
    """


class AuthenticationFailed(StoreError):
    """etcd refused the certificate, the user name or the password."""


class LeaseLost(StoreError):
    """etcd says that the lease has ended: all keys under it are deleted."""


class PeerError(DtfError):
    """Another member of the run is gone or does not answer."""


class GenerationBroken(PeerError):
    """The current generation cannot continue: a member or a collective failed. Survivors form a new one."""


class RunRefused(DtfError):
    """This node may not join the run (another script, settings or model); the run itself goes on."""


class StateRefused(RunRefused):
    """A joiner was let in, but could not be given the run's state, or holds another one; the run goes on without it."""


class StateDiffers(DtfError):
    """This worker's weights, optimizer or other training state are not those of its peers, who go on without it."""


class RunAborted(DtfError):
    """The run was ended: by the leader, after too many failures, or because its workers stopped apart. The message says why."""


class ProtocolError(DtfError):
    """A peer sent what the protocol does not allow, or has another version: a bug of this package or a mixed install."""


class CheckpointError(DtfError):
    """A checkpoint could not be written or read; earlier checkpoints are unchanged."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint is missing or its content has changed since it was written."""
