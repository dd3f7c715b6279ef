"""Where a farm's keys lie in etcd: `/dtf/farm/<farm>/<kind>/<name>`, one folder for each kind.

| kind | name | lease | what |
|---|---|---|---|
| `leader` | – | the coordinator's | who leads; its create revision is the epoch, which fences every decision |
| `coordinators` | coordinator | the same lease | where it listens, and whether an operator has disabled it |
| `terms` | epoch | – | a leadership, now or before: the latest of them |
| `nodes` | coordinator | – | how its machine was when it last said so; stays for a day when it has gone |
| `disabled` | coordinator | – | an operator wants it to take no work |
| `workers` | farm worker | – | what it offers, and which coordinator holds its connection |
| `health` | farm worker | – | how its machine is, at most once a minute; goes with the worker |
| `tasks` | task | – | what was asked for, until it is done |
| `attempts` | task | – | the attempt that counts; its mod revision is the attempt's identity |
| `done` | task | – | the envelope of the result, written once; deleted when it is in the archive |
| `endings` | task, attempt's identity | – | an attempt that does not count any more, and the workers on which its processes may still run |
| `failed` | task, attempt's number | – | an attempt after which the task is tried again |
| `meetings` | task | – | where the members of a gang's attempt find each other; goes with the attempt |
| `members` | task, rank | – | a member of a gang's attempt that has ended; goes with the attempt |
| `yields` | task | – | a training's part is asked to give its device back; the leader deletes it when that attempt is over |
| `borrowings` | training | – | which of its devices others got, and when they came back: the latest; goes with the training |
| `keys` | key | – | the task that was submitted under an idempotency key |
| `tombstones` | task | – | a task that was archived: its id cannot be used again |
| `projects` | project | – | its weight, and how many of which licences it may hold |
| `licences` | licence | – | how many there are of it |
| `signing-keys` | the key's `kid` | – | a key that signs tokens, sealed with the farm's own token |
| `tokens` | the token's id | – | what a list shows of a token; of one to join with how often it can still be used |
| `revoked` | the token's or the family's id | – | it is good no more; goes when it would have expired |
| `families` | farm worker | – | the tokens of a worker that has joined |
| `schedules` | schedule | – | a plan that is submitted at certain times, and what became of the latest of them |
| `quarantine` | project, test | – | a test whose failures do not count for a while, and whose it is |
| `secrets` | project, secret | – | a secret that the farm gives to the project's tasks, sealed with a key that is not in etcd |
| `orchestrations` | job | – | a job that is split over devices: its shares, and how its subtasks ended as far as that is noted |
| `scaling` | pool | – | which workers of it were asked for, what was done, what failed, what was spent |
| `reservations` | reservation | – | workers that people have reserved, from when until when, for whom |
| `plans`, `alerts` | each its own | – | small records |
| `restoring` | – | – | no record: a backup is being put back, and coordinators do not start (`farm.backup`) |

Rule: whoever starts reads only the kinds in `LIVE`, so that what is done costs a start nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from urllib.parse import quote, unquote

from dtf_lightning.errors import SettingsError

ROOT = "/dtf/farm/"


class Kind(Enum):
    """The folders under a farm's prefix; `LEADER` is a single key."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and these are looked up with every change

    LEADER = "leader"
    COORDINATOR = "coordinators"
    TERM = "terms"
    NODE = "nodes"
    DISABLED = "disabled"
    WORKER = "workers"
    HEALTH = "health"
    TASK = "tasks"
    ATTEMPT = "attempts"
    DONE = "done"
    FAILED = "failed"
    ENDING = "endings"
    MEETING = "meetings"
    MEMBER = "members"
    YIELD = "yields"
    BORROWINGS = "borrowings"
    KEY = "keys"
    TOMBSTONE = "tombstones"
    PLAN = "plans"
    PROJECT = "projects"
    LICENCE = "licences"
    SCHEDULE = "schedules"
    QUARANTINE = "quarantine"
    SECRET = "secrets"
    ORCHESTRATION = "orchestrations"
    RESERVATION = "reservations"
    SCALING = "scaling"
    SIGNING_KEY = "signing-keys"
    TOKEN = "tokens"
    REVOKED = "revoked"
    FAMILY = "families"
    ALERT = "alerts"
    SILENCE = "silences"


LIVE = (
    Kind.LEADER,
    Kind.COORDINATOR,
    Kind.TERM,
    Kind.NODE,
    Kind.DISABLED,
    Kind.WORKER,
    Kind.HEALTH,
    Kind.TASK,
    Kind.ATTEMPT,
    Kind.ENDING,
    Kind.MEETING,
    Kind.MEMBER,
    Kind.YIELD,
    Kind.BORROWINGS,
    Kind.PLAN,
    Kind.PROJECT,
    Kind.LICENCE,
    Kind.SCHEDULE,
    Kind.QUARANTINE,
    Kind.SECRET,
    Kind.ORCHESTRATION,
    Kind.RESERVATION,
    Kind.SCALING,
    Kind.SIGNING_KEY,
    Kind.TOKEN,
    Kind.REVOKED,
    Kind.FAMILY,
    Kind.ALERT,
    Kind.SILENCE,
)
"""What a coordinator holds in memory. Of the others it hears, but keeps nothing."""


@dataclass(frozen=True)
class FarmKeys:
    """The keys of one farm. Names may hold any character; they are quoted. Raises `SettingsError` for an empty name."""

    farm: str
    prefix: str = field(init=False)
    """Of all keys of this farm."""
    leader: str = field(init=False)
    """The one record that is no folder."""
    restoring: str = field(init=False)
    """Is there while a backup is being put back."""
    _folders: dict[Kind, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.farm:
            raise SettingsError("a farm's name is empty; expected a word such as 'lab'")
        prefix = f"{ROOT}{_quoted(self.farm)}/"
        folders = {kind: f"{prefix}{kind.value}/" for kind in Kind}
        folders[Kind.LEADER] = prefix + Kind.LEADER.value
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "leader", folders[Kind.LEADER])
        object.__setattr__(self, "restoring", prefix + "restoring")
        object.__setattr__(self, "_folders", folders)

    def folder(self, kind: Kind) -> str:
        """The prefix of all keys of a kind."""
        return self._folders[kind]

    def key(self, kind: Kind, *names: str | int) -> str:
        """The key of one record. `names`: one, for `FAILED` the task and the number of its attempt, for `ENDING` its identity, for `MEMBER` its rank, for `QUARANTINE` project and test, for `SECRET` project and secret."""
        assert len(names) == _NUM_NAMES.get(kind, 1), (kind, names)
        if "" in names:
            raise SettingsError(f"an empty name under {kind.value}/: every record of a farm has a name")
        if len(names) == 1:
            return self._folders[kind] + _quoted(str(names[0]))
        return self._folders[kind] + "/".join(_quoted(str(name)) for name in names)

    def parse(self, key: str) -> tuple[Kind, tuple[str, ...]] | None:
        """What a key under the prefix is about; `None` for one that this version does not know."""
        folder, _, rest = key.removeprefix(self.prefix).partition("/")
        kind = _KINDS.get(folder)
        names = tuple(map(unquote, rest.split("/")) if "%" in rest else rest.split("/")) if rest else ()
        if kind is None or len(names) != _NUM_NAMES.get(kind, 1):
            return None
        return kind, names


_PLAIN = re.compile(r"[A-Za-z0-9_~-]+")


@lru_cache(10_000)  # a task's name is asked for a dozen times while it lives
def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else quote(name, safe="")


_NUM_NAMES = {Kind.LEADER: 0, Kind.FAILED: 2, Kind.ENDING: 2, Kind.MEMBER: 2, Kind.QUARANTINE: 2, Kind.SECRET: 2}
_KINDS = {kind.value: kind for kind in Kind}
