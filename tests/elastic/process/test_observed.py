"""A run that is watched in every way at once: metrics, traces, `dtf watch`, the database, the report."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.reports.store import ResultsStore
from support.collector import Collector
from support.elastic.reports import BALANCE
from support.elastic.run import PATIENCE
from support.elastic.training import Training

pytestmark = pytest.mark.process

DTF = Path(sys.executable).with_name("dtf")


def test_a_run_is_seen_from_everywhere(make_run, etcd, tmp_path):
    """Two nodes train, a third joins, a worker is killed: every observer tells the same story."""
    screen = tmp_path / "screen.txt"
    with Collector() as collector, screen.open("w") as printed:
        run = make_run(Training(until_stopped=True, batch_norm=False))
        run.agent = {"metrics_port": 0, "traces": True}
        run.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        command = [DTF, "watch", run.run_id, "--run-dir", run.folder, "--endpoint", etcd.endpoint, "--interval", "0.1"]
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE, text=True) as watching:
            try:
                run.start("a", "b")
                before = run.wait_for_world(2)
                # What it finds at its first look is no change, and c is to be one.
                poll_until(lambda: "run running" in screen.read_text(), PATIENCE, "the watcher's first look")
                run.start("c")
                before = run.wait_for_world(3, after=before)
                metrics = scrape_until(run.folder, "a", three_train)
                poll_until(lambda: "c: member, " in screen.read_text(), PATIENCE, lambda: f"c in {screen.read_text()}")
                psutil.Process(run.nodes["b"].worker_pids()[0]).kill()
                run.wait_for_world(2, after=before)
                scrape_until(run.folder, "a", lambda found: found.get('dtf_rescales_total{kind="failure"}') == 1)
                run.stop()
                run.wait_until_over(failed=1)
                _, errors = watching.communicate(timeout=PATIENCE)
            except BaseException:
                watching.kill()  # it would watch the run for ever, and hide what went wrong
                raise
    watched = screen.read_text()
    assert metrics["dtf_step"] > 0
    assert metrics['dtf_time_seconds{bucket="productive",worker="a/0"}'] > 0
    check_traces(run, collector)
    assert (watching.returncode, errors) == (0, "")
    for text in ("c: member, ", "failure: 2 workers train again after", "evaluated at step", "run finished"):
        assert text in watched, watched
    with ResultsStore() as store:
        assert store.sync(run.folder).corrupt == []
        assert store.query(BALANCE).fetchall() == []
        assert {row["rescale"] for row in store.rows("FROM rescales")} >= {"join", "failure"}
        instances = "SELECT DISTINCT data->>'instance' AS name FROM events WHERE kind LIKE 'generation%'"
        ((instance,),) = store.query(instances).fetchall()
        assert instance
        assert store.rows("SELECT DISTINCT worker FROM workers WHERE ending = 'killed'") == [{"worker": "b/0"}]


def three_train(metrics):
    """The third node's join is done and counted; the first generation may have had one member or two."""
    joins = 'dtf_rescales_total{kind="join"}', 'dtf_rescale_pause_seconds_count{kind="join"}'
    return metrics.get("dtf_world_size") == 3 and all(metrics.get(name, 0) >= 1 for name in joins)


def scrape_until(folder, node, holds):
    """Prometheus's way: the address from the run's folder, then the node's metrics, until this holds."""
    path = folder / "metrics" / f"{node}.json"
    found = {}

    def look():
        nonlocal found
        if path.exists():
            address = json.loads(path.read_text())[0]["targets"][0]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
                lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
            found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
        return found if holds(found) else None

    return poll_until(look, PATIENCE, lambda: f"other metrics than {found}")


def check_traces(run, collector):
    """One trace for each rescale that workers went through, with the phases of every survivor."""
    rescales = run.rescales()
    roots = {span.trace_id: span for span in collector.spans if span.name == "rescale"}
    assert len(roots) == len({event.generation for event in rescales})
    workers = [span for span in collector.spans if span.name.startswith("worker ")]
    assert len(workers) == len(rescales)
    for worker in workers:
        assert worker.parent_span_id == roots[worker.trace_id].span_id
        phases = [span for span in collector.spans if span.parent_span_id == worker.span_id]
        assert {span.name for span in phases} >= {"unwind", "wait", "group", "state", "wrap", "first step"}
        lasted = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in phases)
        assert lasted == pytest.approx(worker.end_time_unix_nano - worker.start_time_unix_nano, rel=0.01, abs=1e6)
