"""Notices, and somebody who is told over HTTP."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.alerts.notice import notice_of
from dtf_lightning.farm.rules.watching.alerts import Severity
from dtf_lightning.farm.rules.watching.incidents import AlertOf, Delivery, Incident, Step
from support.farm.told import Listener


@pytest.fixture
def listener():
    with Listener() as found:
        yield found


@pytest.fixture
def notice():
    """What is said of an incident whose names are markup, a mention and more than one line."""

    def make(step=Step.FIRING, number=1):
        alert = AlertOf(rule="sick", subject="<!channel>\nBcc: x@y", reason="3 tests failed & more ```", since=1.0)
        incident = Incident(
            name="sick", opened=1.0, severity=Severity.CRITICAL, owners=("ada",),
            alerts=() if step is Step.RESOLVED else (alert,), past=(alert,) if step is Step.RESOLVED else (),
        )  # fmt: skip
        delivery = Delivery(number=number, step=step, handler="h")
        return notice_of("sick-1", incident, delivery, "lab", "https://farm:8080")

    return make
