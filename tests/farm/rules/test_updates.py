"""Updates and subscriptions: held to an obvious reference that keeps everything and looks through all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dtf_lightning.farm.rules.updates import Hub, Subscription, Update, takes

CAPACITY = 4
CHANNELS = ("tasks", "nodes")
FACTS = st.fixed_dictionaries({"status": st.sampled_from("ab"), "plan": st.sampled_from("xy")})
FILTERS = st.dictionaries(
    st.sampled_from(["status", "plan", "nobody"]), st.frozensets(st.sampled_from("abxy")), max_size=2
)


@dataclass
class Reference:
    """One subscription, by definition."""

    channel: str
    wanted: dict
    since: int
    seen: int = 0
    """How many of the channel's updates, of all that ever were, it has looked at."""


@dataclass
class Everything:
    updates: list[Update] = field(default_factory=list)
    first: int = 0
    """Number of the first that is kept."""
    kept_since: int = 0

    def keep(self) -> None:
        if len(self.updates) - self.first > CAPACITY:
            self.kept_since = self.updates[self.first].sequence
            self.first += 1


class HubMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.hub: Hub[int] = Hub(CHANNELS, CAPACITY)
        self.all = {channel: Everything() for channel in CHANNELS}
        self.sequence = 0
        self.pairs: list[tuple[Subscription, Reference]] = []
        self.number = 0

    @rule(channel=st.sampled_from(CHANNELS), step=st.integers(0, 2), facts=FACTS)
    def publish(self, channel, step, facts):
        self.sequence += step
        self.number += 1
        update = Update(self.sequence, facts, self.number)
        self.hub.publish(channel, update)
        self.all[channel].updates.append(update)
        self.all[channel].keep()

    @rule(step=st.integers(0, 3))
    def advance(self, step):
        self.sequence += step
        self.hub.advance(self.sequence)

    @rule(step=st.integers(0, 3))
    def restart(self, step):
        self.sequence += step
        self.hub.restart(self.sequence)
        for everything in self.all.values():
            everything.first, everything.kept_since = len(everything.updates), self.sequence
        for _, reference in self.pairs:
            reference.seen = -1

    @rule(channel=st.sampled_from(CHANNELS), wanted=FILTERS, back=st.none() | st.integers(-2, 8))
    def subscribe(self, channel, wanted, back):
        since = None if back is None else max(self.sequence - back, 0)
        subscription, whole = self.hub.subscribe(channel, wanted, since)
        everything = self.all[channel]
        assert whole == (since is None or since >= everything.kept_since)
        end = len(everything.updates)
        if since is None or not whole:
            self.pairs.append((subscription, Reference(channel, wanted, self.sequence, end)))
        else:
            self.pairs.append((subscription, Reference(channel, wanted, since, everything.first)))

    @rule(at_most=st.integers(1, 3), data=st.data())
    def take(self, at_most, data):
        if not self.pairs:
            return
        subscription, reference = data.draw(st.sampled_from(self.pairs))
        everything = self.all[reference.channel]
        taken = self.hub.take(subscription, at_most)
        assert taken.lost == (reference.seen < everything.first)
        if taken.lost:
            self.pairs = [pair for pair in self.pairs if pair[0] is not subscription]
            return
        wanted = []
        while reference.seen < len(everything.updates) and len(wanted) < at_most:
            update = everything.updates[reference.seen]
            reference.seen += 1
            fits = all(update.facts.get(name, "") in values for name, values in reference.wanted.items())
            if fits and update.sequence > reference.since:
                wanted.append(update)
        assert taken.updates == wanted

    @invariant()
    def what_is_kept_is_said(self):
        assert self.hub.sequence == self.sequence
        for channel, everything in self.all.items():
            assert self.hub.kept_since(channel) == everything.kept_since


HubMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestHub = HubMachine.TestCase


@given(sequences=st.lists(st.integers(0, 3), min_size=1, max_size=30), cut=st.integers(0, 30))
def test_who_comes_back_misses_nothing_or_is_told(sequences, cut):
    """At another coordinator, whose record shows the same: since what was seen whole."""
    hub: Hub[int] = Hub(("tasks",), 8)
    now, published = 0, []
    for number, step in enumerate(sequences):
        now += step + (number == 0)
        published.append(Update(now, {}, number))
        hub.publish("tasks", published[-1])
    seen = published[min(cut, len(published) - 1)].sequence
    subscription, whole = hub.subscribe("tasks", {}, seen)
    missing = [update for update in published if update.sequence > seen]
    told = hub.take(subscription, 100).updates
    assert told == (missing if whole else [])
    assert whole or len(missing) < len(published)


def test_a_filter_takes_what_has_one_of_its_values():
    assert takes({}, {})
    assert takes({"status": frozenset("ab")}, {"status": "a"})
    assert not takes({"status": frozenset("ab"), "plan": frozenset("p")}, {"status": "a"})
