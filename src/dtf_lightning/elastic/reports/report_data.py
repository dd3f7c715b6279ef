"""Gathers everything that a report says about one run into one JSON value, which is shown as HTML, text or Markdown."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from dtf_lightning.elastic.events import ELASTIC_EVENTS, CheckpointSaved, Evaluated
from dtf_lightning.elastic.observe.time_account import Bucket
from dtf_lightning.elastic.reports.hardware_comparison import COMPARED, differences, paces, stragglers
from dtf_lightning.elastic.reports.store import ResultsStore

MAX_POINTS = 2000
"""The most points of a line in a chart."""

BUCKETS = [bucket.value for bucket in Bucket]
PHASES = ["unwind", "wait", "group", "state", "wrap", "first_step"]


def gather(store: ResultsStore, run: str) -> dict[str, Any]:
    """Return the account of a run, given by its name in the database.

    A run that was resumed under its id, or begun anew, has several instances, each of which numbers its generations from
    1: `label` then is `instance.generation`, and else the generation's number.
    """
    (head,) = store.rows("FROM runs WHERE run = ?", [run])
    began = head["started"]
    instances = store.query("SELECT coalesce(max(instance), 1) FROM generations WHERE run = ?", [run]).fetchall()[0][0]
    account = {
        "run": {
            **head,
            "instances": instances,
            "started": _text(began),
            "ended": _text(head["ended"]),
            "seconds": _since(head["ended"], began),
        },
        "description": _description(store, run),
        "generations": _generations(store, run, began),
        "timeline": _timeline(store, run, began),
        "goodput": _goodput(store, run),
        "rescales": _rescales(store, run, began),
        **_curves(store, run),
        "checkpoints": _checkpoints(store, run, began),
        "audits": store.rows("SELECT * EXCLUDE (run) FROM audits WHERE run = ? ORDER BY epoch", [run]),
        "epochs": epoch_ranges(store.rows("FROM audits WHERE run = ? ORDER BY epoch", [run])),
        "costs": store.rows("SELECT * EXCLUDE (run) FROM costs WHERE run = ? ORDER BY instance, generation", [run]),
        "events": _events(store, run, began),
        "corrupt": store.rows("SELECT file, line, problem FROM corrupt_lines WHERE run = ? ORDER BY ALL", [run]),
    }
    account["hardware"] = hardware = _hardware(store, run)
    account["mixed"] = [
        key for key in COMPARED if len({json.dumps(node.get(key), sort_keys=True) for node in hardware.values()}) > 1
    ]
    account["differences"] = differences(hardware, account["mixed"])
    account["paces"] = paces(store, run)
    account["stragglers"] = stragglers(account["paces"])
    for entered in (*account["generations"], *(stay for worker in account["timeline"] for stay in worker["stays"])):
        number = entered["generation"]
        entered["label"] = f"{entered['instance']}.{number}" if instances > 1 else str(number)
    return account


def _since(time: datetime | None, began: datetime | None) -> float:
    return (time - began).total_seconds() if time is not None and began is not None else 0.0


def _text(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time is not None else ""


def _description(store: ResultsStore, run: str) -> dict[str, Any]:
    rows = store.rows(
        "SELECT data->>'description' AS d FROM events WHERE run = ? AND kind = 'training_described' ORDER BY time",
        [run],
    )
    return dict(json.loads(rows[0]["d"])) if rows else {}


def _hardware(store: ResultsStore, run: str) -> dict[str, dict[str, Any]]:
    rows = store.rows(
        "SELECT data->>'node' AS node, last(data->>'hardware' ORDER BY time) AS hardware FROM events "
        "WHERE run = ? AND kind = 'hardware' GROUP BY ALL ORDER BY node",
        [run],
    )
    return {row["node"]: json.loads(row["hardware"]) for row in rows}


def _generations(store: ResultsStore, run: str, began: datetime | None) -> list[dict[str, Any]]:
    rows = store.rows(
        f"""
        SELECT g.* EXCLUDE (run), median(r.pause) AS pause, max(r.pause) AS worst_pause,
            {", ".join(f'median(r."{phase}") AS "{phase}"' for phase in PHASES)}
        FROM generations g
        LEFT JOIN rescales r ON r.run = g.run AND r.instance = g.instance AND r.generation = g.generation
        WHERE g.run = ? GROUP BY ALL ORDER BY g.instance, g.generation
        """,
        [run],
    )
    return [{**row, "began": _since(row["began"], began)} for row in rows]


def _timeline(store: ResultsStore, run: str, began: datetime | None) -> list[dict[str, Any]]:
    """Return each worker's stays in generations, in seconds since the run's start."""
    entered: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in store.rows(
        "SELECT source, (data->>'incarnation')::INT AS incarnation, instance, time, "
        "(data->>'generation')::INT AS generation, (data->>'rank')::INT AS rank FROM instance_events "
        "WHERE run = ? AND kind = 'generation_entered' ORDER BY time",
        [run],
    ):
        entered.setdefault((entry["source"], entry["incarnation"], entry["instance"]), []).append(entry)
    found = []
    for worker in store.rows("FROM workers WHERE run = ? ORDER BY started, worker", [run]):
        entries = entered.get((worker["worker"], worker["incarnation"], worker["instance"]), [])
        end = _since(worker["ended"], began)
        edges = [*(_since(entry["time"], began) for entry in entries), end]
        found.append(
            {
                "worker": worker["worker"],
                "incarnation": worker["incarnation"],
                "instance": worker["instance"],
                "host": worker["host"],
                "started": _since(worker["started"], began),
                "ended": end,
                "ending": worker["ending"],
                "stays": [
                    {
                        "instance": worker["instance"],
                        "generation": entry["generation"],
                        "rank": entry["rank"],
                        "from": edges[i],
                        "to": edges[i + 1],
                    }
                    for i, entry in enumerate(entries)
                ],
            }
        )
    return found


def _goodput(store: ResultsStore, run: str) -> dict[str, Any]:
    workers = store.rows(
        "SELECT * EXCLUDE (run) FROM goodput WHERE run = ? ORDER BY instance, worker, incarnation", [run]
    )
    total = {bucket: sum(worker[bucket] for worker in workers) for bucket in BUCKETS}
    wall = sum(worker["wall"] for worker in workers)
    trained = wall - total[Bucket.STARTUP.value]
    return {
        "workers": workers,
        "total": total,
        "wall": wall,
        "goodput": total["productive"] / wall if wall else 0.0,
        "after_startup": total["productive"] / trained if trained else 0.0,
    }


def _rescales(store: ResultsStore, run: str, began: datetime | None) -> list[dict[str, Any]]:
    rows = store.rows("SELECT * EXCLUDE (run) FROM rescales WHERE run = ? ORDER BY instance, generation, worker", [run])
    return [{**row, "time": _since(row["time"], began)} for row in rows]


def _curves(store: ResultsStore, run: str) -> dict[str, Any]:
    """Return the curves by step: the mean of the ranks' losses, the sum of the world's throughput.

    What an instance trained beyond the step at which a later one began is not part of the run any more.
    """
    rows = store.query(
        """
        WITH samples AS (SELECT * FROM instance_samples WHERE run = ?),
        beginnings AS (SELECT instance, min(step - steps) AS step FROM samples GROUP BY instance)
        SELECT step, generation, avg(loss), max(samples / nullif(seconds, 0)), any_value(world_size), avg(lr)
        FROM samples s
        WHERE step <= coalesce((SELECT min(b.step) FROM beginnings b WHERE b.instance > s.instance), step)
        GROUP BY step, instance, generation
        QUALIFY row_number() OVER (PARTITION BY step ORDER BY instance DESC, generation DESC) = 1 ORDER BY step
        """,
        [run],
    ).fetchall()
    rows = rows[:: max(1, len(rows) // MAX_POINTS)]
    names = ("step", "generation", "loss", "samples_per_second", "world_size", "lr")
    metrics: dict[str, list[Any]] = {}
    for step, metric, value in store.query(
        "SELECT step, metric, value FROM evaluations WHERE run = ? "
        "QUALIFY row_number() OVER (PARTITION BY step, metric ORDER BY instance DESC) = 1 ORDER BY step",
        [run],
    ).fetchall():
        metrics.setdefault(metric, []).append([step, value])
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {"curves": dict(zip(names, map(list, columns), strict=True)), "evaluations": metrics}


def _checkpoints(store: ResultsStore, run: str, began: datetime | None) -> list[dict[str, Any]]:
    rows = store.rows("SELECT * EXCLUDE (run) FROM checkpoints WHERE run = ? ORDER BY time", [run])
    return [{**row, "time": _since(row["time"], began), "pruned": row["pruned"] is not None} for row in rows]


_WITH_TABLES = {CheckpointSaved.kind, Evaluated.kind}
"""Important kinds that a report shows in tables of their own."""


def _events(store: ResultsStore, run: str, began: datetime | None) -> list[dict[str, Any]]:
    """Return the important events, in words."""
    rows = store.rows(
        """
        SELECT time, source, kind, data FROM events WHERE run = ? AND kind IN
            (SELECT unnest(?::VARCHAR[]))
        ORDER BY time
        """,
        [run, sorted(ELASTIC_EVENTS.important - _WITH_TABLES)],
    )
    return [
        {
            "time": _since(row["time"], began),
            "kind": row["kind"],
            "text": ELASTIC_EVENTS.from_json(json.loads(row["data"])).describe(),
        }
        for row in rows
    ]


def epoch_ranges(audits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the audits of epochs, those in a row with the same findings put together."""
    found: list[dict[str, Any]] = []
    for audit in audits:
        same = {key: audit[key] for key in ("complete", "consumed", "missing", "repeated", "padding")}
        if found and all(found[-1][key] == value for key, value in same.items()):
            found[-1]["epoch"] = f"{found[-1]['epoch']}".partition("–")[0] + f"–{audit['epoch']}"
        else:
            found.append({"epoch": f"{audit['epoch']}", **same})
    return found
