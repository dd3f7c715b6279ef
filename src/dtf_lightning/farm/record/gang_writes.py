"""Writes about a gang's attempt while it runs: where its members meet, and which of them have ended. Pure.

Both are guarded by the attempt that counts, and each is made once for it: whoever has its workers, whichever coordinator
they talk with. The attempt's end deletes them (`writes.gone_with`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import Meeting, MemberRecord
from dtf_lightning.farm.record.writes import LaneName, Recording, told_of


@dataclass(frozen=True, kw_only=True)
class Meet:
    """Tell where the members of an attempt meet. The verdict: whether this attempt has such a place, this or another."""

    task: str
    meeting: Meeting
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the head of this file."""
        attempt, meeting = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.MEETING, self.task)
        compares = (as_seen(attempt, self.meeting.revision), absent(meeting))
        return Guarded(f"meeting of {self.task}", compares, (Put(meeting, encode(self.meeting)),), (meeting,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether this attempt has a place where its members meet."""
        return told_of(outcome, Kind.MEETING, self.meeting.revision) is Recording.RECORDED


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
        compares = (as_seen(attempt, self.member.revision), absent(member))
        label = f"member {self.rank} of {self.task}"
        return Guarded(label, compares, (Put(member, encode(self.member)),), (member,))

    def verdict(self, outcome: Outcome) -> Recording:
        """What became of it."""
        return told_of(outcome, Kind.MEMBER, self.member.revision)
