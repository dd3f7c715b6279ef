"""Writes about a gang's attempt while it runs: where its members meet, and which of them have ended. Pure.

Both are guarded by the attempt that counts, and each is made once for it: whoever has its workers, whichever coordinator
they talk with. The attempt's end deletes them (`writes.gone_with`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Put
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import Meeting, MemberRecord
from dtf_lightning.farm.record.writes import LaneName, Recording


@dataclass(frozen=True, kw_only=True)
class Meet:
    """Tell where the members of an attempt meet. The verdict: whether this attempt has such a place, this or another."""

    task: str
    meeting: Meeting
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the head of this file."""
        attempt, meeting = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.MEETING, self.task)
        compares = (Compare(attempt, "mod", "=", self.meeting.revision), Compare(meeting, "version", "=", 0))
        return Guarded(f"meeting of {self.task}", compares, (Put(meeting, encode(self.meeting)),), (meeting,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether this attempt has a place where its members meet."""
        if outcome.applied:
            return True
        (meeting,) = outcome.found
        if meeting is None:
            return False
        record = decode(Kind.MEETING, meeting.value)
        assert isinstance(record, Meeting)
        return record.revision == self.meeting.revision


@dataclass(frozen=True, kw_only=True)
class RecordMember:
    """Record how a member of a gang's attempt ended; of the attempt that counts, and once."""

    task: str
    rank: int
    member: MemberRecord
    lane = LaneName.RESULT

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the head of this file."""
        attempt, member = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.MEMBER, self.task, self.rank)
        compares = (Compare(attempt, "mod", "=", self.member.revision), Compare(member, "version", "=", 0))
        label = f"member {self.rank} of {self.task}"
        return Guarded(label, compares, (Put(member, encode(self.member)),), (member,))

    def verdict(self, outcome: Outcome) -> Recording:
        """What became of it."""
        if outcome.applied:
            return Recording.RECORDED
        (member,) = outcome.found
        if member is None:
            return Recording.STALE
        record = decode(Kind.MEMBER, member.value)
        assert isinstance(record, MemberRecord)
        return Recording.RECORDED if record.revision == self.member.revision else Recording.STALE
