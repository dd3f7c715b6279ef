"""How the records about tokens are written. Pure.

| write | guard | what is written |
|---|---|---|
| `AddKey` | no key of that name | a key that signs; older ones are deleted where they must not verify any more |
| `NoteToken` | no token of that id | what a list shows of a token |
| `Revoke` | not revoked before | a token, or a worker's family, is good no more |
| `Join` | the token to join with, as seen; the worker's family, as seen | one use less, and the worker's new family |
| `Renew` | the worker's family, as seen | its next number |
| `ForgetTokens` | each as seen | records that no token can need any more are deleted |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.tokens.values import FamilyRecord, RevokedRecord, SigningKeyRecord, TokenRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class AddKey:
    """Add a key that signs. The verdict: whether it is there."""

    name: str
    record: SigningKeyRecord
    instead_of: tuple[str, ...] = ()
    """Names of keys that go."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SIGNING_KEY, self.name)
        gone = (Delete(keys.key(Kind.SIGNING_KEY, name)) for name in self.instead_of)
        return Guarded(f"add the key {self.name}", (absent(key),), (Put(key, encode(self.record)), *gone), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class NoteToken:
    """Note a token. The verdict: whether it is noted."""

    name: str
    record: TokenRecord
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.TOKEN, self.name)
        return Guarded(f"note the token {self.name}", (absent(key),), (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is noted."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class Revoke:
    """Revoke a token or a family. The verdict: whether it is revoked, from now or before."""

    name: str
    record: RevokedRecord
    worker: str = ""
    """Whose family it is; "": it is a token."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.REVOKED, self.name)
        then: list[Put | Delete] = [Put(key, encode(self.record))]
        if self.worker:
            then.append(Delete(keys.key(Kind.FAMILY, self.worker)))
        return Guarded(f"revoke {self.name}", (absent(key),), tuple(then), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is revoked."""
        return outcome.applied or outcome.found[0] is not None


@dataclass(frozen=True, kw_only=True)
class Join:
    """Use a token to join with for a worker. The verdict: whether the worker has joined by this."""

    token: str
    record: TokenRecord
    """With one use less."""
    seen: int
    worker: str
    family: FamilyRecord
    family_seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        token, family = keys.key(Kind.TOKEN, self.token), keys.key(Kind.FAMILY, self.worker)
        compares = (as_seen(token, self.seen), as_seen(family, self.family_seen))
        then = (Put(token, encode(self.record)), Put(family, encode(self.family)))
        return Guarded(f"join {self.worker}", compares, then, (family,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the worker has joined by this."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.family)


@dataclass(frozen=True, kw_only=True)
class Renew:
    """Give a worker its next tokens. The verdict: whether this did."""

    worker: str
    family: FamilyRecord
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        family = keys.key(Kind.FAMILY, self.worker)
        return Guarded(
            f"renew {self.worker}", (as_seen(family, self.seen),), (Put(family, encode(self.family)),), (family,)
        )

    def verdict(self, outcome: Outcome) -> bool:
        """Whether this did."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.family)


@dataclass(frozen=True, kw_only=True)
class ForgetTokens:
    """Delete a record that nothing needs any more. The verdict: whether this deleted it."""

    kind: Kind
    name: str
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(self.kind, self.name)
        return Guarded(f"forget {self.kind.value}/{self.name}", (as_seen(key, self.seen),), (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether this deleted it."""
        return outcome.applied
