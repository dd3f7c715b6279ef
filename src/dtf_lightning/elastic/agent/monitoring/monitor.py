"""`Monitor` reads a node's event logs as they grow, and hands the events to metrics and traces.

Rules that this file guards:

* nothing here is in the way of training: a thread of its own reads files that are written anyway;
* whatever fails costs one warning: an extra that is not installed, a port that is taken, a collector that is away.
"""

from __future__ import annotations

import glob
import json
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from dtf_lightning import environment
from dtf_lightning.elastic.agent.monitoring.progress_file import ProgressFile
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.events.log import EventLog
from dtf_lightning.events.registry import Event
from dtf_lightning.events.tail import EventTail
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks at the logs."""


class Sink(Protocol):
    """A receiver of events. Used by the monitor's thread only."""

    def take(self, event: Event) -> None:
        """Take in an event."""

    def close(self) -> None:
        """Send what has not been sent, within seconds."""


class Monitor:
    """A thread that reads the event logs of one node and its workers, and hands every event to the sinks.

    Args:
        folder: the run's, once it is known.
        targets: what Prometheus's file-based discovery is to find in `<folder>/metrics/<node>.json`; empty for nothing.
    """

    def __init__(
        self,
        folder: Callable[[], Path | None],
        node: str,
        sinks: Sequence[Sink],
        *,
        targets: list[dict[str, object]] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._folder = folder
        self._node = node
        self._sinks = list(sinks)
        self._targets = targets or []
        self._target_file: Path | None = None
        self._interval = interval
        self._tail: EventTail | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-monitor")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Look once more, then close the sinks. Idempotent."""
        if self._end.is_set():
            return
        self._end.set()
        self._thread.join(2 * INTERVAL + 10.0)
        for sink in self._sinks:
            self._protect(sink, sink.close)
        if self._target_file is not None:
            self._target_file.unlink(missing_ok=True)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._end.wait(self._interval)
            try:
                self._look()
            except Exception as error:  # a bug of ours must not end the agent with a traceback of a thread
                log.warning("metrics and traces stop: %r", error)
                return

    def _look(self) -> None:
        folder = self._folder()
        if folder is None:
            return
        if self._tail is None:
            name = glob.escape(self._node)
            self._tail = EventTail(ELASTIC_EVENTS, folder, (f"{name}.jsonl", f"{name}.*.jsonl"))
            self._write_targets(folder)
        for event in self._tail.look():
            for sink in list(self._sinks):
                self._protect(sink, partial(sink.take, event))

    def _protect(self, sink: Sink, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # another package's code; training has nothing to do with it
            log.warning("%s: %s stops: %r", self._node, type(sink).__name__.lower(), error)
            self._sinks = [other for other in self._sinks if other is not sink]

    def _write_targets(self, folder: Path) -> None:
        if not self._targets:
            return
        path = folder / "metrics" / f"{self._node}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(self._targets) + "\n").encode())
            self._target_file = path
        except OSError as error:
            log.warning("%s: %s cannot be written (%s): Prometheus will not find this node", self._node, path, error)


def start_monitor(settings: AgentSettings, run_id: str, node: str, host: str, event_log: EventLog) -> Monitor | None:
    """Start and return the monitor that `metrics_port`, `traces` and `progress` ask for; `None` for none. Raises nothing."""
    sinks: list[Sink] = []
    targets: list[dict[str, object]] = []
    if settings.metrics_port is not None:
        try:
            from dtf_lightning.elastic.agent.monitoring.metrics import Metrics

            metrics = Metrics(settings.metrics_port, run_id, node)
            log.info("%s: metrics at http://%s:%d/metrics", node, host, metrics.port)
            targets.append({"targets": [f"{host}:{metrics.port}"], "labels": {"run": run_id, "node": node}})
            sinks.append(metrics)
        except ImportError:
            log.warning("metrics_port needs prometheus_client: pip install 'dtf-lightning[metrics]'; training goes on")
        except OSError as error:
            log.warning(
                "no metrics: port %d cannot be served (%s); metrics_port=0 takes a free one; training goes on",
                settings.metrics_port, error.strerror or error,
            )  # fmt: skip
        except Exception as error:  # another package's code; training has nothing to do with it
            log.warning("no metrics: %r; training goes on", error)
    if settings.traces:
        try:
            from dtf_lightning.elastic.agent.monitoring.traces import Traces

            sinks.append(Traces(run_id, node))
        except ImportError:
            log.warning("traces needs opentelemetry: pip install 'dtf-lightning[traces]'; training goes on")
        except Exception as error:  # what OTEL_ variables ask for is another package's business
            log.warning("no traces: %r; training goes on", error)
    if settings.progress is not None:
        sinks.append(ProgressFile(Path(environment.expanded(settings.progress))))
    if not sinks:
        return None
    monitor = Monitor(lambda: event_log.path and event_log.path.parent.parent, node, sinks, targets=targets)
    monitor.start()
    return monitor
