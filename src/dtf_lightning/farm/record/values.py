"""The values of a farm's records: small and immutable; `codec.py` writes them to etcd.

Names are in the keys, not in the values. Times are seconds since the epoch (UTC) by the clock of who wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from dtf_lightning.farm.calls.spelling import CallKind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.record.scaling.values import PoolRecord
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.record.secrets.values import SecretRecord
from dtf_lightning.farm.record.tokens.values import FamilyRecord, RevokedRecord, SigningKeyRecord, TokenRecord
from dtf_lightning.farm.rules.attempts import AttemptOutcome
from dtf_lightning.farm.rules.health import WorkerHealth
from dtf_lightning.farm.rules.inputs import stored_digests
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.watching.incidents import Incident, Silence


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderRecord:
    """Who leads. The epoch is the key's create revision."""

    coordinator: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorRecord:
    """A coordinator that is there."""

    address: str
    version: str
    enabled: bool = True
    """`False`: an operator wants it to take no work."""
    host: str = ""
    """Name of its machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TermRecord:
    """A leadership, now or before. Its name is its epoch."""

    coordinator: str
    started: float
    previous: str = ""
    """Who led before; "": nobody, as far as is known."""
    reason: str = ""
    """Why the one before ended."""
    ended: float | None = None
    """Where the leader itself has said so."""
    end_reason: str = ""
    """Why, where the leader itself has said so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRecord:
    """How a coordinator's machine was when the coordinator last said so."""

    address: str
    version: str
    host: str = ""
    started: float
    """When the coordinator started."""
    at: float
    """When it said so."""
    health: Mapping[str, float] = field(default_factory=dict)
    """Such as `cpu_usage`, by `rules.health`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DisabledRecord:
    """An operator wants a coordinator to take no work."""

    at: float
    reason: str = ""


class WorkerState(Enum):
    """What a farm worker is at."""

    ONLINE = "online"
    BUSY = "busy"
    DRAINING = "draining"
    OFFLINE = "offline"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRecord:
    """A farm worker, as it last registered."""

    coordinator: str
    """Which holds its connection; "": none."""
    connection: str
    """Chosen anew for every connection: a coordinator answers a worker once its watch has shown this."""
    session: str
    """Chosen anew by every start of the worker's process."""
    identity: str = ""
    """Of the worker's folder, over all its starts."""
    state: WorkerState = WorkerState.ONLINE
    devices: Mapping[str, float] = field(default_factory=dict)
    """Resource -> how much of it, such as `{"cpu": 8, "gpu": 2}`."""
    labels: tuple[str, ...] = ()
    cordoned: bool = False
    """An operator, or the farm itself, wants nothing more to start there; what runs goes on."""
    cordoned_at: float = 0.0
    """When the farm last cordoned it by itself, seconds since the epoch; 0: never."""
    cordoned_for: str = ""
    """Why, as long as it is cordoned for that; "": nobody, or an operator, has cordoned it."""
    host: str = ""
    """Name of the machine, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpecification:
    """What was asked for. Two of them are equal if the client asked for the same."""

    command: tuple[str, ...]
    project: str = "default"
    plan: str = ""
    name: str = ""
    needs: tuple[Need, ...] = ()
    """Alternatives, the preferred one first; none: one core."""
    gang: int = 1
    """Workers that run it together."""
    array: int = 0
    """Instances, for an array; 0 for any other task."""
    array_id: str = ""
    """Of an instance: its array."""
    index: int | None = None
    """Of an instance: its number, from 0."""
    training: int = 0
    """Of a training, which is an array, and of its parts: how many of them it keeps; 0: it is none."""
    suspend_for: int | None = None
    """Of a training: priority from which on work gets these, too, and the training waits; `None`: it never does."""
    after: tuple[str, ...] = ()
    """Ids of tasks that must have completed."""
    after_any: tuple[str, ...] = ()
    """Ids of tasks that must have ended, however."""
    priority: int = 0
    timeout: float | None = None
    """Seconds for one attempt."""
    expires: float | None = None
    """Seconds after its submission at which it is not started any more."""
    retries: int = 0
    """How often it is tried again after an attempt of its own fault: a command that failed, or took too long."""
    retry_on: tuple[str, ...] = ()
    """Kinds of ends after which it is tried again (`rules.attempts.is_retried`); none: after any of its own fault."""
    retry_exit_codes: tuple[int, ...] = ()
    """Of a command that failed, the exit codes after which it is tried again; none: after any."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Name of a licence -> how many of it are held while it runs."""
    call: str = ""
    """Of a task that is a call of a Python function: how the function comes to the worker (`farm.calls`)."""
    source: str = ""
    """Digest of the files that its workspace begins with; "": none."""
    folder: str = ""
    """Where in its workspace the command runs, relative."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Place below its folder -> what lies there when it starts (`rules.inputs`)."""
    artifacts: tuple[str, ...] = ()
    """Patterns of files in its folder that are kept."""
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    """The task to which its standard input was sent: itself, or the one of which it is a retry; "": it reads nothing."""
    secrets: tuple[str, ...] = ()
    """Names of secrets that its worker must have, and of the variables in which they are given."""
    permissions: tuple[str, ...] = ()
    """What its command may do with the farm by a token of its own (`security.permissions.TASK_MAY`); none: it gets no token."""
    key: str = ""
    """Of an idempotent submission; "": none."""
    retry_of: str = ""
    """Id of the task that was done and is tried again as this one; "": none."""
    avoid: tuple[str, ...] = ()
    """Workers that are not to run it while others can."""
    reuse: float = 0.0
    """How old, in seconds, a result for the same inputs may be that is taken in the place of running it; 0: it runs."""
    submitted: float = field(default=0.0, compare=False)
    """When a coordinator accepted it, which is no part of what was asked for."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Digests of what lies in the farm's files for it."""
        return tuple(filter(None, [self.source, *stored_digests(self.inputs.values())]))

    @property
    def is_pickled(self) -> bool:
        """Whether it is a call of a function that travels by cloudpickle."""
        return self.call == CallKind.PICKLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """The attempt at a task that counts. Its key's mod revision is its identity."""

    number: int
    """Starts at 1."""
    workers: tuple[str, ...] = ()
    """Who tries: several for a gang, none while the task waits to be tried again."""
    alternative: int = 0
    """Which of the task's needs was granted."""
    failures: int = 0
    """Attempts before this one that count against the task's retries: those that a lost worker ended do not."""
    lost: int = 0
    """Workers that were lost while they ran it."""
    born: int = 0
    """Of an array, which is never tried itself: so many of its instances have come to life, the first ones."""

    yielded: float = 0.0
    """Of a training's part that waits: when it gave its device back; 0: it never did."""

    def lent(self, at: float) -> Attempt:
        """Return the attempt of a training's part that gives its device back, at this time: no failure, nobody to avoid."""
        return replace(self, workers=(), yielded=at)

    def given_back(self, worker: str, *, lost: bool) -> Attempt:
        """Return the attempt as it waits to be tried again, elsewhere than on `worker`.

        `lost`: the worker was lost with it, which counts no try against the task.
        """
        return replace(
            self,
            workers=(),
            excluded=(*(name for name in self.excluded if name != worker), worker),
            failures=self.failures + (not lost),
            lost=self.lost + lost,
        )

    epoch: int = 0
    """Of the leader that decided it."""
    excluded: tuple[str, ...] = ()
    """Workers that the next attempt should avoid, the latest last."""


class TaskOutcome(Enum):
    """How a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    EXPIRED = "expired"


COMMAND_CHARACTERS = 400


NO_ATTEMPT = Attempt(number=0)
"""Of a task that was never given to a worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """A task's result, at most `codec.MAX_ENVELOPE` bytes without `asked`: counts and links; test cases and logs are
    artifacts.
    """

    outcome: TaskOutcome
    attempt: int
    """Number of the attempt whose result this is; 0 if there was none."""
    revision: int
    """That attempt's identity; 0 if there was none."""
    workers: tuple[str, ...] = ()
    reason: str = ""
    """One sentence."""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    """128 + n for a command that signal n has ended, as a shell has it."""
    kind: str = ""
    """How that attempt ended (`rules.attempts.OutcomeKind`)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Name -> URL."""
    missing: tuple[str, ...] = ()
    """Names of artifacts that could not be stored."""
    log_bytes: int = 0
    """Length of the output of the attempt that counts."""
    tail: str = ""
    """The last of its output."""
    returned: str = ""
    """Of a call: what is told of its value (`farm.calls.returned`)."""
    submitted: float | None = None
    project: str = ""
    plan: str = ""
    name: str = ""
    command: tuple[str, ...] = ()
    """The task's own, shortened to `COMMAND_CHARACTERS` in all, for people."""
    retry_of: str = ""
    """As in the specification."""
    fingerprint: str = ""
    """Of what it was made from (`rules.submissions.fingerprint`), where it may be used again; "": it may not."""
    reused_from: str = ""
    """The task whose result this is, which had the same inputs; "": its own."""
    asked: str = ""
    """The specification, as `asked.pack` writes it; "": it is not kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedAttempt:
    """An attempt that has ended without the task's end."""

    revision: int
    """The attempt's identity."""
    workers: tuple[str, ...]
    reason: str
    ended: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """An attempt that does not count any more: what it holds is not free before its processes are gone."""

    workers: tuple[str, ...]
    """Those that have not said that nothing of it is left."""
    need: Need
    """What each of them gives it."""
    project: str = "default"
    limits: Mapping[str, int] = field(default_factory=dict)
    """As in the specification."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Where the members of a gang's attempt find each other: its first member's host, and a port that is free there."""

    revision: int
    """The attempt's identity."""
    host: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRecord:
    """A member of a gang's attempt has ended."""

    revision: int
    """The attempt's identity."""
    worker: str
    outcome: AttemptOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class YieldRequest:
    """A training's part is to give its device back."""

    revision: int
    """The attempt's identity."""
    wanted_by: str
    """The task that needs it."""
    at: float
    worker: str = ""
    """Which gives it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowing:
    """A training's part gave its device back. Times are seconds since the epoch."""

    part: str
    worker: str
    wanted_by: str
    """The task that needed it."""
    asked: float
    left: float
    back: float = 0.0
    """When the part had a device again, perhaps another one; 0: not yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowings:
    """The devices that a training gave back."""

    number: int = 0
    """All of them."""
    seconds: float = 0.0
    """For which parts were away, as far as they are back."""
    latest: tuple[Borrowing, ...] = ()
    """The oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectRecord:
    """A project, as an operator has set it."""

    weight: float = 1.0
    """Of twice the weight it gets twice the share."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Licence -> how many of it the project's tasks may hold at once."""
    max_running: int = 0
    """Tasks of the project that may run at once; 0: any number."""
    max_pending: int = 0
    """Tasks of the project that may be there without being done, above which no more are taken; 0: any number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LicenceRecord:
    """Something of which only so many tasks may hold some at once."""

    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """Which task was submitted under an idempotency key, or which plan."""

    task: str
    """Of a plan its first, with which the key is forgotten."""
    plan: str = ""
    """The plan's id; "": it is a task's key."""
    digest: str = ""
    """Of what the plan was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """A task that was archived."""

    outcome: TaskOutcome
    archived: float


Value = (
    LeaderRecord
    | TermRecord
    | NodeRecord
    | DisabledRecord
    | CoordinatorRecord
    | WorkerRecord
    | WorkerHealth
    | TaskSpecification
    | Attempt
    | Envelope
    | FailedAttempt
    | Ending
    | Meeting
    | MemberRecord
    | YieldRequest
    | Borrowings
    | ProjectRecord
    | LicenceRecord
    | ScheduleRecord
    | QuarantineRecord
    | SecretRecord
    | ReservationRecord
    | PoolRecord
    | OrchestrationRecord
    | KeyRecord
    | Tombstone
    | SigningKeyRecord
    | TokenRecord
    | RevokedRecord
    | FamilyRecord
    | Incident
    | Silence
)
"""Whatever a record holds."""
