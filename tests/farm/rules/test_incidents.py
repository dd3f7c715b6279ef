"""What is brought together to one incident, and what is owed to whom: as an obvious rule has it, and in every case of the table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.watching.alerts import Alert, AlertKey, AlertRule, Severity
from dtf_lightning.farm.rules.watching.incidents import (
    GROWN,
    LONGEST_PAUSE,
    TRIES,
    AlertOf,
    DeliveryState,
    Incident,
    Silence,
    delivered,
    delivery_key,
    due,
    next_incidents,
    pause_after,
    tried,
)

RULES = {
    rule.name: rule
    for rule in (
        AlertRule(name="slow", finding="etcd_latency", group="etcd", handlers=("chat",), owner="ada"),
        AlertRule(
            name="full", finding="etcd_size", group="etcd", severity=Severity.CRITICAL, handlers=("mail",), owner="bob"
        ),
        AlertRule(
            name="sick", finding="worker_errors", handlers=("chat",), escalate_after=600.0, escalate_to=("phone",)
        ),
    )
}


def step(firing, before=(), silences=(), now=0.0):
    """`firing`: pairs of rule and subject. What has been told of them is sent at once."""
    alerts = [Alert(AlertKey(*one), f"{one[0]} holds", firing=True) for one in firing]
    keys = {alert.key for alert in alerts}
    named = {one.name: one for one in before}
    after = next_incidents(RULES, alerts, lambda key: key not in keys, named, silences, now)
    return list(after.values())


def steps(incident: Incident) -> list[tuple[str, str]]:
    return [(one.step.value, one.handler) for one in incident.deliveries]


def test_rules_of_a_group_make_one_incident():
    """However many subjects; with the owners and handlers of all, and the worst severity."""
    etcd, sick = sorted(
        step([("slow", "etcd"), ("full", "etcd"), ("sick", "w1"), ("sick", "w2")]), key=lambda one: one.name
    )
    assert (etcd.name, etcd.severity, etcd.owners) == ("etcd", Severity.CRITICAL, ("ada", "bob"))
    assert steps(etcd) == [("firing", "chat"), ("firing", "mail")]
    assert (sick.name, [one.subject for one in sick.alerts], steps(sick)) == (
        "sick",
        ["w1", "w2"],
        [("firing", "chat")],
    )


def test_it_becomes_worse_and_is_over():
    (one,) = step([("slow", "etcd")])
    (one,) = step([("slow", "etcd"), ("full", "etcd")], [one], now=10.0)
    assert steps(one)[1:] == [("worse", "chat"), ("worse", "mail")]
    (one,) = step([("slow", "etcd")], [one], now=20.0)
    assert (one.severity, one.is_open, len(one.deliveries)) == (Severity.CRITICAL, True, 3)
    (one,) = step([], [one], now=30.0)
    assert (one.resolved_at, set(steps(one)[3:])) == (30.0, {("resolved", "chat"), ("resolved", "mail")})
    assert [alert.rule for alert in one.past] == ["full", "slow"]


def test_what_joins_is_told_after_a_while_and_ever_more_rarely():
    (one,) = step([("sick", "w1")])
    one = replace(one, acknowledged_at=1.0)
    (one,) = step([("sick", "w1"), ("sick", "w2")], [one], now=GROWN - 1)
    assert len(one.deliveries) == 1
    (one,) = step([("sick", "w1"), ("sick", "w2")], [one], now=GROWN)
    assert steps(one)[1:] == [("grown", "chat")]
    (one,) = step([("sick", "w3")], [one], now=3 * GROWN - 1)
    assert len(one.deliveries) == 2
    (one,) = step([("sick", "w3")], [one], now=3 * GROWN)
    assert len(one.deliveries) == 3
    (one,) = step([("sick", "w1"), ("sick", "w2")], [one], now=100 * GROWN)
    assert len(one.deliveries) == 3, "those were there before"


@pytest.mark.parametrize(("acknowledged", "told"), [(0.0, [("escalated", "phone")]), (5.0, [])])
def test_escalation(acknowledged, told):
    (one,) = step([("sick", "w1")])
    one = replace(one, acknowledged_at=acknowledged)
    (early,) = step([("sick", "w1")], [one], now=599.0)
    (late,) = step([("sick", "w1")], [early], now=600.0)
    (later,) = step([("sick", "w1")], [late], now=6000.0)
    assert (steps(early)[1:], steps(late)[1:], steps(later)[1:]) == ([], told, told)


def test_a_silence():
    """Nothing is said in it, and when it is over what is left to say. One alert that is not covered is loud."""
    silence = Silence(rule="sick", subject="w1", until=100.0)
    (one,) = step([("sick", "w1")], silences=[silence])
    assert (one.is_open, one.deliveries) == (True, ())
    (loud,) = step([("sick", "w1"), ("sick", "w2")], [one], [silence], now=50.0)
    assert steps(loud) == [("firing", "chat")]
    (after,) = step([("sick", "w1")], [one], [silence], now=100.0)
    assert steps(after) == [("firing", "chat")]
    (over,) = step([], [one], [silence], now=60.0)
    assert (over.is_open, over.deliveries) == (False, ())
    (of_group,) = step([("slow", "etcd")], silences=[Silence(rule="et*", subject="*", until=9.0)])
    assert of_group.deliveries == ()


KEYS = st.sampled_from([("slow", "etcd"), ("full", "etcd"), ("sick", "w1"), ("sick", "w2"), ("sick", "w3")])
MOMENTS = st.lists(st.tuples(st.floats(1.0, 700.0), st.sets(KEYS), st.booleans()), min_size=1, max_size=25)


@given(moments=MOMENTS)
def test_as_an_obvious_rule(moments):
    """An incident of a name is open exactly while an alert of it fires; without silences its first and last words are said, each to
    each handler once, in this order; nothing is said of what is over; escalation at most once, and never of what is acknowledged."""
    now, history = 0.0, []
    open_ones: dict[str, Incident] = {}
    for pause, firing, acknowledged in moments:
        now += pause
        wanted = {
            RULES[rule].incident: {key for key in firing if RULES[key[0]].incident == RULES[rule].incident}
            for rule, _ in firing
        }
        for after in step(firing, list(open_ones.values()), now=now):
            before = open_ones.get(after.name)
            assert after.is_open is (after.name in wanted)
            assert {(one.rule, one.subject) for one in after.alerts} == wanted.get(after.name, set())
            assert after.deliveries[: len(before.deliveries) if before else 0] == (before.deliveries if before else ())
            if before and before.acknowledged_at:
                assert [one for one in steps(after) if one[0] == "escalated"] == [
                    one for one in steps(before) if one[0] == "escalated"
                ]
            if after.is_open:
                open_ones[after.name] = replace(after, acknowledged_at=now) if acknowledged else after
            else:
                history.append(after)
                open_ones.pop(after.name)
        assert open_ones.keys() == wanted.keys()
    for incident in [*history, *open_ones.values()]:
        told = steps(incident)
        assert len({(one.number, one.handler) for one in incident.deliveries}) == len(told)
        assert {name for name, _ in told[:1]} == {"firing"}
        for handler in {handler for _, handler in told}:
            mine = [name for name, to in told if to == handler]
            assert mine.count("escalated") <= 1 >= mine.count("firing")
            assert ("resolved" in mine) is (not incident.is_open)
            assert "resolved" not in mine[:-1]


@given(outcomes=st.lists(st.booleans(), max_size=40))
def test_a_delivery_is_tried_until_it_is_sent_or_given_up(outcomes):
    """Each pause is longer than the one before, up to a limit; a second step waits for the first."""
    (incident,) = step([("full", "etcd")])
    (incident,) = step([], [incident], now=1.0)
    now, sent, failed = 10.0, [], 0
    for good in outcomes:
        waiting = due(incident, now)
        if not waiting:
            break
        (delivery,) = waiting
        incident = tried(incident, delivery, now)
        assert due(incident, now) == []
        (claimed,) = (one for one in incident.deliveries if one.number == delivery.number)
        incident = delivered(incident, claimed, now, "" if good else "no")
        failed = 0 if good else failed + 1
        if good or failed == TRIES:
            sent.append((delivery.step.value, good))
            failed = 0
        elif failed:
            pause = pause_after(failed)
            assert (due(incident, now + pause - 0.1), len(due(incident, now + pause))) == ([], 1)
            now += pause
    assert [name for name, _ in sent] == ["firing", "resolved"][: len(sent)]
    states = {True: DeliveryState.SENT, False: DeliveryState.GIVEN_UP}
    assert [one.state for one in incident.deliveries[: len(sent)]] == [states[good] for _, good in sent]
    assert pause_after(TRIES) == LONGEST_PAUSE


def test_a_key_names_one_word_to_one_handler():
    (one,) = step([("slow", "etcd"), ("full", "etcd")])
    (one,) = step([], [one], now=1.0)
    keys = [delivery_key("etcd-1", delivery) for delivery in one.deliveries]
    assert keys[0] == "etcd-1/1-firing/chat"
    assert len(set(keys)) == 4


def test_a_clock_that_jumps_back_holds_up_no_delivery():
    (one,) = step([("sick", "w1")])
    (delivery,) = due(one, 1000.0)
    assert len(due(tried(one, delivery, 1000.0), 500.0)) == 1


def test_an_alert_of_a_rule_that_is_gone_ends_with_its_incident():
    old = Incident(
        name="x",
        opened=0.0,
        severity=Severity.WARNING,
        alerts=(AlertOf(rule="gone", subject="a", reason="b", since=0.0),),
    )
    (one,) = step([], [old], now=5.0)
    assert (one.resolved_at, one.deliveries) == (5.0, ())
