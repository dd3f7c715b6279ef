"""What alerts a coordinator's settings make: the rules, the handlers, and the desk for people."""

from __future__ import annotations

from collections.abc import Callable

from dtf_lightning.clock import Clock
from dtf_lightning.farm.alerts.handlers import LogHandler, make_handler
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.server.alerting.alerting import Alerting, AlertPlan
from dtf_lightning.farm.server.alerting.desk import AlertDesk
from dtf_lightning.farm.server.alerting.sending import HandlerEntry, Sender
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace
from dtf_lightning.farm.settings.alerts import LOG

LOG_TIMEOUT = 10.0


def make_alerts(
    pool: Pool, record: FarmRecord, clock: Clock, place: CoordinatorPlace, epoch: Callable[[], int]
) -> tuple[Alerting, AlertDesk]:
    """Return what the leader does about alerts, and what people do. Raises `SettingsError` for a handler that cannot be made.

    `epoch`: of the leadership by which this coordinator decides; 0: it does not lead.
    """
    settings = place.settings
    handlers = {LOG: HandlerEntry(LogHandler(), LOG_TIMEOUT)}
    for told in settings.alerts.handlers:
        handlers[told.name] = HandlerEntry(make_handler(told, settings.path), told.timeout)
    sender = Sender(handlers, clock)
    plan = AlertPlan(
        rules=settings.alerts.alert_rules, calm=settings.alerts.calm, farm=place.farm, url=place.address.rstrip("/")
    )
    alerting = Alerting(pool, record, clock, sender, plan, epoch)
    return alerting, AlertDesk(alerting, sender, pool, record, clock)
