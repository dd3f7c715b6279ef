"""`Exposition`: a farm's metrics as Prometheus reads them: what was measured last, and what this coordinator has counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.values import Envelope
from dtf_lightning.farm.rules.watching.measures import CONNECTED, ENDED, LEADS, METRICS, RAN, WAITED, Sample

_WAITS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0)
"""Seconds: from a dispatch at once to a queue of hours."""


class Exposition(Collector):
    """Runs on the coordinator's event loop.

    Args:
        samples: returns what was measured last.
        leads: returns whether this coordinator leads.
        connected: returns how many workers are connected to it.
    """

    def __init__(
        self, samples: Callable[[], Sequence[Sample]], leads: Callable[[], bool], connected: Callable[[], int]
    ) -> None:
        self._samples = samples
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._ended = Counter(ENDED.name, ENDED.help, (ENDED.label,), registry=self._registry)
        self._waited = Histogram(WAITED.name, WAITED.help, buckets=_WAITS, registry=self._registry)
        self._ran = Histogram(RAN.name, RAN.help, buckets=_WAITS, registry=self._registry)
        Gauge(LEADS.name, LEADS.help, registry=self._registry).set_function(lambda: float(leads()))
        Gauge(CONNECTED.name, CONNECTED.help, registry=self._registry).set_function(connected)

    def changed(self, change: Change) -> None:
        """The record shows a change."""
        if change.kind is not Kind.DONE or change.after is None:
            return
        envelope = change.after.value
        assert isinstance(envelope, Envelope)
        self._ended.labels(envelope.outcome.value).inc()
        if envelope.started is None:
            return
        # Machines' clocks differ a little, and no time is negative.
        if envelope.submitted is not None:
            self._waited.observe(max(envelope.started - envelope.submitted, 0.0))
        if envelope.ended is not None:
            self._ran.observe(max(envelope.ended - envelope.started, 0.0))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What was measured last, for the registry."""
        by_metric: dict[str, list[Sample]] = {}
        for sample in self._samples():
            by_metric.setdefault(sample.metric, []).append(sample)
        for name, samples in by_metric.items():
            metric = METRICS[name]
            family = GaugeMetricFamily(name, metric.help, labels=[metric.label] if metric.label else [])
            for sample in samples:
                family.add_metric([sample.subject] if metric.label else [], sample.value)
            yield family

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
