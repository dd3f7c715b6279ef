"""`Traces` sends rescales as OpenTelemetry traces, with every worker's phases. Importing this needs the extra `traces`.

    rescale                    by the node that has rank 0 in the new generation
    +-- worker a/0             by its node
        +-- unwind, wait, group, state, wrap, first step

The nodes of a run do not talk about traces: trace and root have ids that follow from the run and the generation. Where
spans go is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from dtf_lightning import __version__
from dtf_lightning.elastic.events import GenerationEntered, WorkerRescaled
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 3.0
"""Seconds that the last spans have to be sent."""


class Traces:
    """A sink that turns each `WorkerRescaled` into spans.

    Args:
        exporter: where spans go; `None`: over OTLP/HTTP to where the environment says.
    """

    def __init__(self, run_id: str, node: str, exporter: SpanExporter | None = None) -> None:
        self._run_id = run_id
        self._formed_at: dict[tuple[str, int], float] = {}
        self._ids = _Ids()
        resource = Resource.create({"dtf.run": run_id, "dtf.node": node})
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "dtf-lightning"}))
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Quiet(exporter or _otlp())))
        self._tracer = self._provider.get_tracer("dtf_lightning", __version__)

    def take(self, event: Event) -> None:
        """Trace the event if it is a rescale; ignore any other."""
        if isinstance(event, GenerationEntered):
            self._formed_at[event.source, event.generation] = event.formed_at
        elif isinstance(event, WorkerRescaled):
            self._trace(event)

    def _trace(self, event: WorkerRescaled) -> None:
        formed_at = self._formed_at.pop((event.source, event.generation), 0.0)
        digest = hashlib.sha256(f"{self._run_id}\n{formed_at!r}\n{event.generation}".encode()).digest()
        trace_id, root_id = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
        end, start = _ns(event.at), _ns(event.at - event.pause)
        attributes: dict[str, str | int | bool] = {
            "dtf.generation": event.generation, "dtf.rescale": event.rescale, "dtf.reason": event.reason,
            "dtf.world_size": event.world_size, "dtf.step": event.step,
        }  # fmt: skip
        if event.rank == 0:
            self._ids.next_trace, self._ids.next_span = trace_id, root_id
            root = self._tracer.start_span("rescale", Context(), start_time=start, attributes=attributes)
            root.end(end)
        parent = SpanContext(trace_id, root_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
        worker = self._tracer.start_span(
            f"worker {event.source}",
            set_span_in_context(NonRecordingSpan(parent), Context()),
            start_time=start,
            attributes={**attributes, "dtf.worker": event.source, "dtf.rank": event.rank, "dtf.redrawn": event.redrawn},
        )
        inside = set_span_in_context(worker, Context())
        at = event.at - event.pause
        for phase, seconds in event.phases.items():
            span = self._tracer.start_span(phase.replace("_", " "), inside, start_time=_ns(at))
            at += seconds
            span.end(_ns(at))
        worker.end(end)

    def close(self) -> None:
        """Send the last spans; a collector that does not answer is not waited for."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True, name="dtf-traces")
        thread.start()
        thread.join(CLOSE_TIMEOUT)


class _Ids(RandomIdGenerator):
    """A generator of random ids, which gives out prescribed ones first."""

    next_trace = 0
    next_span = 0

    def generate_trace_id(self) -> int:
        given, self.next_trace = self.next_trace, 0
        return given or super().generate_trace_id()

    def generate_span_id(self) -> int:
        given, self.next_span = self.next_span, 0
        return given or super().generate_span_id()


class _Quiet(SpanExporter):
    """An exporter that warns once when spans do not arrive, instead of once for every batch."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._warned = False
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # another package's code, in its own thread
            log.debug("spans were not exported: %r", error)
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS and not self._warned:
            self._warned = True
            log.warning("spans of rescales do not arrive at the collector (see OTEL_EXPORTER_OTLP_ENDPOINT)")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _otlp() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
