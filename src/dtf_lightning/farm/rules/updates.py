"""What has changed, for those who want to be told: channels that keep their latest updates, and subscriptions to them.

Rules that this file guards:
- A sequence is the revision of the record at which something changed, so that it means the same at every coordinator.
  Several updates may have the same one; sequences of a channel never fall.
- A subscription that begins `since` a sequence is told everything after it that its filter takes, in order, each once; or
  it is told that something is missing, where the channel does not keep all of it any more.
- Nobody is waited for: a subscription that falls behind what its channel keeps is told that it has lost its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Filter = Mapping[str, frozenset[str]]
"""Name of a fact -> the values of which it must have one."""


@dataclass(frozen=True, slots=True)
class Update(Generic[T]):
    """Something that has changed."""

    sequence: int
    facts: Mapping[str, str]
    """What filters ask about."""
    body: T
    """What is told."""


@dataclass(slots=True)
class Subscription:
    """A place in a channel. It is moved by `Hub.take`."""

    channel: str
    wanted: Filter
    since: int
    """Updates up to this sequence were seen."""
    position: int
    """Number of the next update to look at."""


@dataclass(frozen=True)
class Taken(Generic[T]):
    """What `Hub.take` returns. `lost`: something is missing, before what comes next; the subscription is over."""

    updates: list[Update[T]]
    lost: bool


class _Channel(Generic[T]):
    """The latest updates, numbered from 0 on; `kept[number % capacity]`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: list[Update[T]] = []
        self.first = self.next = 0
        self.kept_since = 0
        """All updates with a greater sequence than this are kept."""

    def add(self, update: Update[T]) -> None:
        place = self.next % self.capacity
        if self.next - self.first == self.capacity:
            self.kept_since = self.kept[place].sequence
            self.first += 1
        if place == len(self.kept):
            self.kept.append(update)
        else:
            self.kept[place] = update
        self.next += 1

    def clear(self, sequence: int) -> None:
        self.next += self.capacity - self.next % self.capacity + self.capacity  # beyond every place that is held
        self.first, self.kept_since = self.next, sequence
        self.kept.clear()


class Hub(Generic[T]):
    """Not thread-safe.

    Args:
        capacity: how many updates each channel keeps.
    """

    def __init__(self, channels: tuple[str, ...], capacity: int) -> None:
        self.sequence = 0
        """Everything up to this has been published."""
        self._channels: dict[str, _Channel[T]] = {channel: _Channel(capacity) for channel in channels}

    def publish(self, channel: str, update: Update[T]) -> None:
        """Keep an update. Its sequence is not smaller than any before it."""
        assert update.sequence >= self.sequence, (update, self.sequence)
        self.sequence = update.sequence
        self._channels[channel].add(update)

    def advance(self, sequence: int) -> None:
        """Everything up to a sequence has been published."""
        self.sequence = max(self.sequence, sequence)

    def restart(self, sequence: int) -> None:
        """What happened before a sequence is not known: nothing is kept, and who follows has lost its place."""
        self.sequence = sequence
        for channel in self._channels.values():
            channel.clear(sequence)

    def kept_since(self, channel: str) -> int:
        """All updates of a channel with a greater sequence than this are kept."""
        return self._channels[channel].kept_since

    def subscribe(self, channel: str, wanted: Filter, since: int | None = None) -> tuple[Subscription, bool]:
        """Return a subscription, and whether it misses nothing since a sequence.

        `since`: `None` is from now on. One that would miss something begins now, too.
        """
        told = self._channels[channel]
        whole = since is None or since >= told.kept_since
        if since is None or not whole:
            return Subscription(channel, wanted, self.sequence, told.next), whole
        return Subscription(channel, wanted, since, told.first), whole

    def take(self, subscription: Subscription, at_most: int) -> Taken[T]:
        """Return the next updates that a subscription wants, and move it behind them."""
        channel = self._channels[subscription.channel]
        if subscription.position < channel.first:
            return Taken([], lost=True)
        found: list[Update[T]] = []
        while subscription.position < channel.next and len(found) < at_most:
            update = channel.kept[subscription.position % channel.capacity]
            subscription.position += 1
            if update.sequence > subscription.since and takes(subscription.wanted, update.facts):
                found.append(update)
        return Taken(found, lost=False)


def takes(wanted: Filter, facts: Mapping[str, str]) -> bool:
    """Whether a filter takes an update with these facts."""
    return all(facts.get(name, "") in values for name, values in wanted.items())
