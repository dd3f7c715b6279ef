"""Metrics and traces come from the logs, and nothing that goes wrong with them reaches training."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.agent.monitoring import traces
from dtf_lightning.elastic.agent.monitoring.metrics import COUNTERS, GAUGES, HISTOGRAMS, Metrics
from dtf_lightning.elastic.agent.monitoring.monitor import Monitor, start_monitor
from dtf_lightning.elastic.agent.monitoring.progress_file import ProgressFile
from dtf_lightning.elastic.agent.monitoring.traces import Traces
from dtf_lightning.elastic.events import (
    ELASTIC_EVENTS,
    CheckpointPruned,
    CheckpointSaved,
    Diverged,
    Evaluated,
    GenerationEntered,
    LeaderElected,
    LearningRateScaled,
    NodeGoneEvent,
    NodeJoined,
    RolledBack,
    StepsDone,
    StragglerSeen,
    TimeSpent,
    WorkerLost,
    WorkerRescaled,
    WorkersPaced,
    WorkerStarted,
)
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.errors import SettingsError
from dtf_lightning.events.log import EventLog, events_path
from dtf_lightning.events.tail import EventTail
from support.collector import Collector
from support.store_worlds import ManualClock

PHASES = {"unwind": 0.02, "wait": 0.03, "group": 0.01, "first_step": 0.04}


def rescaled(source="a/0", rank=0, generation=2):
    return WorkerRescaled(
        at=100.1, source=source, generation=generation, rescale="failure", reason="b#1 failed", world_size=2, rank=rank,
        step=13, pause=0.1, phases=PHASES, redrawn=True, incarnation=1,
    )  # fmt: skip


def entered(source="a/0", rank=0):
    return GenerationEntered(
        at=100.0, source=source, generation=2, rescale="failure", reason="b#1 failed", members=("a#1", "c#1"),
        world_size=2, rank=rank, incarnation=1, step=12, epoch=1, formed_at=99.9,
    )  # fmt: skip


EVENTS = [
    NodeJoined(at=1.0, source="a", node="a", incarnation=1, num_workers=1),
    LeaderElected(at=1.5, source="a", node="a", epoch=5),
    WorkerStarted(at=2.0, source="a/0", run_id="r", node="a", local_rank=0, incarnation=1, pid=1, host="h",
                  started_at=1.0, joiner=False),
    NodeGoneEvent(at=99.0, source="a", node="b", cause="its process is gone"),
    entered(),
    rescaled(),
    StepsDone(at=101.0, source="a/0", generation=2, world_size=2, rank=0, epoch=1, step=23, steps=10, seconds=2.0,
              samples=80, data_wait=0.5, loss=0.25, lr=0.1, rss=1000),
    Evaluated(at=102.0, source="a/0", generation=2, epoch=1, step=23, seconds=0.3, metrics={"val_loss": 0.5}),
    CheckpointSaved(at=103.0, source="a/0", generation=2, step=23, epoch=1, path="c", seconds=0.2, size=7),
    CheckpointPruned(at=103.1, source="a/0", step=23, path="b"),
    TimeSpent(at=104.0, source="a/0", generation=2, incarnation=1, wall=10.0, seconds={"productive": 7.5, "startup": 2.5}),
    LearningRateScaled(at=104.1, source="a/0", generation=2, step=23, world_size=2, rule="linear", factors={"0": 2.0}),
    WorkersPaced(at=104.2, source="a/0", generation=2, step=23, seconds=0.2, busy={"a/0": 0.05, "c/0": 0.15}),
    StragglerSeen(at=104.3, source="a/0", generation=2, step=23, worker="c/0", busy=0.15, usual=0.05),
    Diverged(at=104.4, source="a/0", generation=2, divergence="spike", onset=20, step=23, reason="loss", action="rollback"),
    RolledBack(at=104.5, source="a/0", generation=2, step=20, done=True, reason="back to step 20"),
    WorkerLost(at=105.0, source="a", node="a", local_rank=0, reason="killed"),
]  # fmt: skip


@pytest.fixture
def logs(tmp_path):
    """The logs of node a and its worker, and of a node that is none of ours."""
    agent, worker, other = (EventLog(ELASTIC_EVENTS, events_path(tmp_path, name)) for name in ("a", "a.0.1", "b.0.1"))
    for event in EVENTS:
        (worker if "/" in event.source else agent).write(event)
    other.write(rescaled("b/0", rank=1))
    for log in (agent, worker, other):
        log.close()
    return tmp_path


def settings(**agent):
    return AgentSettings(elastic=ElasticSettings(min_nodes=1, max_nodes=2), **agent)


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics(logs):
    """What the log of one node says is what Prometheus is told; other nodes tell for themselves."""
    event_log = EventLog(ELASTIC_EVENTS, events_path(logs, "a"))
    monitor = start_monitor(settings(metrics_port=0), "r", "a", "127.0.0.1", event_log)
    try:
        target_file = logs / "metrics" / "a.json"
        poll_until(target_file.exists, 60, "the file for Prometheus")
        (target,) = json.loads(target_file.read_text())
        port, last = int(target["targets"][0].partition(":")[2]), 'dtf_events_total{kind="worker_lost"}'
        poll_until(lambda: last in scrape(port), 60, "the last event")
        found = scrape(port)
        assert target["labels"] == {"run": "r", "node": "a"}
    finally:
        monitor.close()
        event_log.close()
    expected = {
        "dtf_generation": 2, "dtf_world_size": 2, "dtf_nodes": 2, "dtf_step": 23, "dtf_epoch": 1,
        "dtf_samples_per_second": 40, "dtf_steps_per_second": 5, 'dtf_loss{worker="a/0"}': 0.25,
        'dtf_learning_rate{worker="a/0"}': 0.1, 'dtf_data_wait_seconds{worker="a/0"}': 0.05,
        'dtf_memory_bytes{worker="a/0"}': 1000, 'dtf_evaluation{metric="val_loss"}': 0.5,
        'dtf_goodput_ratio{worker="a/0"}': 0.75, 'dtf_time_seconds{bucket="startup",worker="a/0"}': 2.5,
        'dtf_rescales_total{kind="failure"}': 1, "dtf_worker_deaths_total": 1, "dtf_nodes_gone_total": 1,
        "dtf_leader_terms_total": 1, "dtf_node_starts_total": 1, "dtf_workers": 0, "dtf_samples_total": 80,
        "dtf_checkpoints_total": 1, "dtf_checkpoints_pruned_total": 1, "dtf_checkpoint_bytes": 7,
        'dtf_rescale_pause_seconds_sum{kind="failure"}': 0.1, 'dtf_rescale_phase_seconds_sum{phase="wait"}': 0.03,
        'dtf_events_total{kind="worker_rescaled"}': 1, 'dtf_learning_rate_factor{optimizer="0"}': 2,
        'dtf_busy_seconds{worker="c/0"}': 0.15, 'dtf_straggler{worker="c/0"}': 1,
        'dtf_divergences_total{kind="spike"}': 1, "dtf_rollbacks_total": 1,
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert not target_file.exists()


def test_one_trace_for_each_rescale(logs):
    """Spans of two nodes meet in one trace, under the root that rank 0's node sends; phases lie end to end."""
    exporters = {}
    for source, rank in (("a/0", 0), ("c/0", 1)):
        exporters[source] = InMemorySpanExporter()
        traces = Traces("r", source[0], exporters[source])
        for event in (entered(source, rank), rescaled(source, rank)):
            traces.take(event)
        traces._provider.force_flush()
        traces.close()
    (root,) = [span for span in exporters["a/0"].get_finished_spans() if span.parent is None]
    assert (root.name, root.attributes["dtf.reason"]) == ("rescale", "b#1 failed")
    everything = [span for exporter in exporters.values() for span in exporter.get_finished_spans()]
    assert {span.context.trace_id for span in everything} == {root.context.trace_id}
    workers = {span.name: span for span in everything if span.name.startswith("worker ")}
    assert workers.keys() == {"worker a/0", "worker c/0"}
    assert {span.parent.span_id for span in workers.values()} == {root.context.span_id}
    for worker in workers.values():
        phases = [span for span in everything if span.parent and span.parent.span_id == worker.context.span_id]
        assert [span.name for span in phases] == ["unwind", "wait", "group", "first step"]
        assert [(span.end_time - span.start_time) / 1e9 for span in phases] == pytest.approx(list(PHASES.values()))
        assert phases[0].start_time == worker.start_time
        assert phases[-1].end_time == pytest.approx(worker.end_time, abs=1000)
    other = InMemorySpanExporter()
    traces = Traces("another run", "a", other)
    traces.take(rescaled())
    traces._provider.force_flush()
    traces.close()
    assert other.get_finished_spans()[0].context.trace_id != root.context.trace_id


def test_spans_go_where_the_environment_says(logs, monkeypatch):
    """Over OTLP, to a collector; the service's name is ours unless it is given."""
    monkeypatch.setattr(traces, "CLOSE_TIMEOUT", 60.0)  # this collector answers, however slow the machine is
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        event_log = EventLog(ELASTIC_EVENTS, events_path(logs, "a"))
        start_monitor(settings(traces=True), "r", "a", "h", event_log).close()
        event_log.close()
    assert [span.name for span in collector.spans if not span.parent_span_id] == ["rescale"]
    assert len(collector.spans) == 2 + len(PHASES)
    assert collector.resources[0].items() >= {"service.name": "dtf-lightning", "dtf.run": "r", "dtf.node": "a"}.items()


def test_no_collector(logs, monkeypatch, caplog):
    """One warning, whatever the number of spans; nobody waits."""

    class Away(SpanExporter):
        def export(self, spans):
            if len(spans) % 2:
                raise OSError("connection refused")
            return SpanExportResult.FAILURE

        def shutdown(self):
            pass

    traces = Traces("r", "a", Away())
    for generation in (2, 3):
        traces.take(rescaled(generation=generation))
        traces._provider.force_flush()
    traces.close()
    assert [record.message for record in caplog.records if "collector" in record.message] == [
        "spans of rescales do not arrive at the collector (see OTEL_EXPORTER_OTLP_ENDPOINT)"
    ]


@pytest.mark.parametrize(
    ("asked", "module", "hint"),
    [
        ({"metrics_port": 0}, "prometheus_client", "pip install 'dtf-lightning[metrics]'"),
        ({"traces": True}, "opentelemetry.sdk.trace", "pip install 'dtf-lightning[traces]'"),
    ],
)
def test_not_installed(monkeypatch, caplog, asked, module, hint):
    """A hint, and training goes on."""
    monkeypatch.setitem(sys.modules, module, None)
    for ours in ("metrics", "traces"):
        monkeypatch.delitem(sys.modules, f"dtf_lightning.elastic.agent.monitoring.{ours}", raising=False)
    assert start_monitor(settings(**asked), "r", "a", "h", EventLog(ELASTIC_EVENTS)) is None
    assert hint in caplog.text


def test_port_is_taken(caplog):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert start_monitor(settings(metrics_port=port), "r", "a", "h", EventLog(ELASTIC_EVENTS)) is None
    assert f"no metrics: port {port} cannot be served (Address already in use)" in caplog.text


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port):
    with pytest.raises(SettingsError, match=f"metrics_port must be a port or 0, got {port}"):
        settings(metrics_port=port)


def test_settings_from_the_command_line():
    given = AgentSettings.from_rdzv_conf(1, 2, {"metrics_port": "0", "traces": "true"})
    assert (given.metrics_port, given.traces) == (0, True)
    with pytest.raises(SettingsError, match="metrics_port must be a whole number, got 'many'"):
        AgentSettings.from_rdzv_conf(1, 2, {"metrics_port": "many"})


class Broken:
    """A sink that fails at the first event."""

    closed = 0

    def take(self, event):
        raise ValueError("no")

    def close(self):
        self.closed += 1


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.events, self.there = [], threading.Event()

    def take(self, event):
        self.events.append(event)
        self.there.set()

    def close(self):
        pass


def test_a_sink_that_fails_is_dropped(logs, caplog):
    """With one warning; the others go on."""
    kept = Kept()
    monitor = Monitor(lambda: logs, "a", [Broken(), kept], interval=0.001)
    monitor.start()
    assert kept.there.wait(60)
    monitor.close()
    monitor.close()
    assert len(kept.events) == len(EVENTS)
    assert [record.message for record in caplog.records] == ["a: broken stops: ValueError('no')"]


def test_nothing_before_the_folder_is_known(tmp_path):
    """The agent learns from its workers where the logs are; until then there is nothing to see."""
    kept, folder = Kept(), []
    monitor = Monitor(lambda: folder[0] if folder else None, "a", [kept], interval=0.001)
    monitor.start()
    log = EventLog(ELASTIC_EVENTS, events_path(tmp_path, "a"))
    log.write(EVENTS[0])
    folder.append(tmp_path)
    assert kept.there.wait(60)
    monitor.close()
    log.close()
    assert kept.events == EVENTS[:1]


def test_tail(tmp_path):
    """Whole lines, each once, in time order over all files; broken ones are counted."""
    tail = EventTail(ELASTIC_EVENTS, tmp_path)
    assert tail.look() == []
    first, second = (EventLog(ELASTIC_EVENTS, events_path(tmp_path, name)) for name in ("a", "b"))
    first.write(EVENTS[3])
    second.write(EVENTS[0])
    assert tail.look() == [EVENTS[0], EVENTS[3]]
    path: Path = first.path
    with path.open("ab") as file:
        file.write(b"nonsense\n\xff\n" + b'{"v":2,')
    assert (tail.look(), tail.num_broken) == ([], 2)
    first.close()
    second.close()


def test_port_is_free_again():
    metrics = Metrics(0, "r", "a")
    metrics.close()
    Metrics(metrics.port, "r", "a").close()


def test_every_metric_is_documented():
    """In docs/observability.md, by its name in Prometheus."""
    page = (Path(__file__).parents[3] / "docs" / "observability.md").read_text()
    names = [*GAUGES, *(f"{name}_total" for name in COUNTERS), *HISTOGRAMS]
    assert [name for name in names if f"`dtf_{name}`" not in page] == []


def test_a_file_says_how_far_the_run_is(tmp_path):
    """At most once a second, whole; an older generation that a worker tells late is passed over."""
    path, clock = tmp_path / "run.jsonl", ManualClock()
    progress = ProgressFile(path, clock)
    progress.take(entered())
    assert json.loads(path.read_text()) == {"generation": 2, "world_size": 2}
    for event in EVENTS:
        progress.take(event)
    progress.take(replace(entered(), generation=1, world_size=7))
    assert json.loads(path.read_text()) == {"generation": 2, "world_size": 2}  # not a second later
    told = {"generation": 2, "world_size": 2, "step": 23, "samples_per_second": 40.0, "goodput": 0.75}
    clock.now += 1.0
    progress.take(EVENTS[0])
    assert json.loads(path.read_text()) == told
    spent = TimeSpent(at=105.0, source="a/1", generation=2, incarnation=1, wall=10.0, seconds={"productive": 2.5})
    progress.take(spent)
    progress.close()
    assert json.loads(path.read_text()) == {**told, "goodput": 0.5}
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["here.jsonl", "missing/there.jsonl"])
def test_the_file_is_where_the_environment_says(logs, tmp_path, monkeypatch, caplog, name):
    """One whose folder is missing costs a warning, and nothing else."""
    monkeypatch.setenv("PLACE", str(tmp_path))
    event_log = EventLog(ELASTIC_EVENTS, events_path(logs, "a"))
    monitor = start_monitor(settings(progress=f"$PLACE/{name}"), "r", "a", "127.0.0.1", event_log)
    monitor.close()  # looks once more
    event_log.close()
    path = tmp_path / name
    told = json.loads(path.read_text()) if path.exists() else {}
    assert told.get("generation") == (2 if name == "here.jsonl" else None)
    assert ("progressfile stops: FileNotFoundError" in caplog.text) == (not told)
