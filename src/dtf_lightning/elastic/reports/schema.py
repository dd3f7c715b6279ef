"""The tables and views of the database of runs."""

from __future__ import annotations

from dtf_lightning.database.connection import Connection
from dtf_lightning.database.schema import Schema
from dtf_lightning.elastic.observe.time_account import Bucket


def _tables(connection: Connection) -> None:
    connection.execute("""
        CREATE TABLE known_runs (run VARCHAR PRIMARY KEY, folder VARCHAR UNIQUE NOT NULL);
        CREATE TABLE files (run VARCHAR, file VARCHAR, bytes BIGINT, lines BIGINT, PRIMARY KEY (run, file));
        CREATE TABLE corrupt_lines (run VARCHAR, file VARCHAR, line BIGINT, problem VARCHAR);
        CREATE TABLE events (
            run VARCHAR, file VARCHAR, line BIGINT, time TIMESTAMP, source VARCHAR, kind VARCHAR, data JSON
        );
        CREATE TABLE step_samples (
            run VARCHAR, file VARCHAR, line BIGINT, time TIMESTAMP, source VARCHAR, generation INTEGER,
            world_size INTEGER, rank INTEGER, epoch INTEGER, step BIGINT, steps BIGINT, seconds DOUBLE, samples BIGINT,
            data_wait DOUBLE, loss DOUBLE, lr DOUBLE, rss BIGINT, device_memory BIGINT
        );
        CREATE TABLE audits (
            run VARCHAR, epoch INTEGER, complete BOOLEAN, consumed BIGINT, missing BIGINT, repeated BIGINT,
            padding BIGINT
        );
        CREATE TABLE costs (
            run VARCHAR, generation INTEGER, step BIGINT, steps BIGINT, steps_lost BIGINT, steps_redone BIGINT,
            samples_lost BIGINT, samples_repeated BIGINT, padding BIGINT
        );
    """)


def _views(connection: Connection) -> None:
    for name, query in {**_HELPERS, **VIEWS}.items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


def _views_by_instance(connection: Connection) -> None:
    # Costs were inserted in the order of time, and each instance begins with generation 1.
    connection.execute("""
        ALTER TABLE costs ADD COLUMN instance INTEGER DEFAULT 1;
        UPDATE costs SET instance = greatest(1, (
            SELECT count(*) FROM costs c WHERE c.run = costs.run AND c.generation = 1 AND c.rowid <= costs.rowid
        ));
    """)
    _views(connection)


_BUCKETS = ", ".join(f"coalesce((data->'seconds'->>'{b.value}')::DOUBLE, 0) AS {b.value}" for b in Bucket)
_WORKER = "run, source AS worker, coalesce((data->>'incarnation')::INTEGER, 0) AS incarnation"

_HELPERS = {
    # The instances of each run, numbered from 1 in the order of time: a run that was resumed under its id in its folder,
    # or begun anew there, has several, and each numbers its generations from 1. Events of older versions name none.
    "instances": """
        SELECT run, name, row_number() OVER (PARTITION BY run ORDER BY began)::INTEGER AS instance FROM (
            SELECT run, coalesce(data->>'instance', '') AS name, min(time) AS began FROM events
            WHERE kind IN ('generation_entered', 'generation_formed') GROUP BY ALL
        )
    """,
    # A file is appended to by every process of its name: from one `worker_started` to the next all is of one process,
    # and that is of the instance whose generations it entered.
    "processes": """
        SELECT p.*, coalesce((
            SELECT min(i.instance) FROM events e
            JOIN instances i ON i.run = e.run AND i.name = coalesce(e.data->>'instance', '')
            WHERE e.kind = 'generation_entered' AND e.run = p.run AND e.file = p.file
                AND e.line >= p.first_line AND e.line < p.end_line
        ), 1) AS instance FROM (
            SELECT run, file, line AS first_line,
                coalesce(lead(line) OVER (PARTITION BY run, file ORDER BY line), 9223372036854775807) AS end_line
            FROM events WHERE kind = 'worker_started'
        ) p
    """,
    "instance_events": """
        SELECT e.*, coalesce(i.instance, p.instance, 1) AS instance, coalesce(p.first_line, 0) AS process FROM events e
        LEFT JOIN processes p
            ON p.run = e.run AND p.file = e.file AND e.line >= p.first_line AND e.line < p.end_line
        LEFT JOIN instances i ON i.run = e.run AND i.name = e.data->>'instance'
    """,
    "instance_samples": """
        SELECT s.*, coalesce(p.instance, 1) AS instance, coalesce(p.first_line, 0) AS process FROM step_samples s
        LEFT JOIN processes p
            ON p.run = s.run AND p.file = s.file AND s.line >= p.first_line AND s.line < p.end_line
    """,
}
"""Views that only the others use."""

VIEWS = {
    "workers": """
        SELECT s.run, s.source AS worker, (s.data->>'incarnation')::INTEGER AS incarnation, s.data->>'node' AS node,
            s.data->>'host' AS host, (s.data->>'pid')::BIGINT AS pid, (s.data->>'joiner')::BOOLEAN AS joiner,
            make_timestamp(((s.data->>'started_at')::DOUBLE * 1e6)::BIGINT) AS started,
            coalesce(e.time, l.time) AS ended, coalesce(e.data->>'reason', 'killed') AS ending, s.instance
        FROM instance_events s
        LEFT JOIN instance_events e ON e.kind = 'worker_ended' AND e.run = s.run AND e.file = s.file AND e.process = s.process
        LEFT JOIN (
            SELECT run, file, process, max(time) AS time FROM (
                SELECT run, file, process, time FROM instance_events
                UNION ALL SELECT run, file, process, time FROM instance_samples
            ) GROUP BY run, file, process
        ) l ON l.run = s.run AND l.file = s.file AND l.process = s.process
        WHERE s.kind = 'worker_started'
    """,
    "generations": """
        SELECT e.run, (e.data->>'generation')::INTEGER AS generation, any_value(e.data->>'rescale') AS rescale,
            any_value(e.data->>'reason') AS reason, any_value((e.data->>'world_size')::INTEGER) AS world_size,
            min((e.data->>'step')::BIGINT) AS step, min((e.data->>'epoch')::INTEGER) AS epoch, min(e.time) AS began,
            any_value(CAST(e.data->'members' AS VARCHAR[])) AS members,
            any_value(CAST(e.data->'failed' AS VARCHAR[])) AS failed, e.instance
        FROM instance_events e WHERE e.kind = 'generation_entered'
            -- In restart mode only agents write, and know no steps.
            OR (e.kind = 'generation_formed' AND NOT EXISTS (
                SELECT 1 FROM events w WHERE w.run = e.run AND w.kind = 'generation_entered'
            ))
        GROUP BY e.run, e.instance, (e.data->>'generation')::INTEGER
    """,
    "rescales": f"""
        SELECT {_WORKER}, time, (data->>'generation')::INTEGER AS generation, data->>'rescale' AS rescale,
            data->>'reason' AS reason, (data->>'world_size')::INTEGER AS world_size, (data->>'rank')::INTEGER AS rank,
            (data->>'step')::BIGINT AS step, (data->>'pause')::DOUBLE AS pause,
            coalesce((data->'phases'->>'unwind')::DOUBLE, 0) AS unwind,
            coalesce((data->'phases'->>'wait')::DOUBLE, 0) AS wait,
            coalesce((data->'phases'->>'group')::DOUBLE, 0) AS "group",
            coalesce((data->'phases'->>'state')::DOUBLE, 0) AS state,
            coalesce((data->'phases'->>'wrap')::DOUBLE, 0) AS wrap,
            coalesce((data->'phases'->>'first_step')::DOUBLE, 0) AS first_step,
            (data->>'redrawn')::BOOLEAN AS redrawn, instance
        FROM instance_events WHERE kind = 'worker_rescaled'
    """,
    "steps": """
        SELECT run, source AS worker, time, generation, world_size, rank, epoch, step, steps, seconds,
            steps / nullif(seconds, 0) AS steps_per_second, samples / nullif(seconds, 0) AS samples_per_second,
            samples, samples / nullif(steps, 0) AS global_batch, data_wait, loss, lr, rss, device_memory, instance
        FROM instance_samples
    """,
    "checkpoints": """
        SELECT s.run, s.time, (s.data->>'generation')::INTEGER AS generation, (s.data->>'step')::BIGINT AS step,
            (s.data->>'epoch')::INTEGER AS epoch, s.data->>'path' AS path, (s.data->>'seconds')::DOUBLE AS seconds,
            (s.data->>'size')::BIGINT AS size,
            (SELECT min(p.time) FROM events p WHERE p.kind = 'checkpoint_pruned' AND p.run = s.run
                AND p.data->>'path' = s.data->>'path' AND p.time >= s.time) AS pruned, s.instance
        FROM instance_events s WHERE s.kind = 'checkpoint_saved'
    """,
    "evaluations": """
        SELECT run, time, generation, epoch, step, seconds, metric, (metrics->>metric)::DOUBLE AS value, instance FROM (
            SELECT run, time, (data->>'generation')::INTEGER AS generation, (data->>'epoch')::INTEGER AS epoch,
                (data->>'step')::BIGINT AS step, (data->>'seconds')::DOUBLE AS seconds, data->'metrics' AS metrics,
                unnest(json_keys(data->'metrics')) AS metric, instance
            FROM instance_events WHERE kind = 'evaluated'
            QUALIFY row_number() OVER (PARTITION BY run, instance, step ORDER BY time DESC) = 1
        )
    """,
    "goodput": f"""
        SELECT {_WORKER}, (data->>'wall')::DOUBLE AS wall, {_BUCKETS}, instance FROM instance_events WHERE kind = 'time_spent'
        QUALIFY row_number() OVER (PARTITION BY run, file, process ORDER BY line DESC) = 1
    """,
    "runs": """
        SELECT k.run, k.folder,
            least((SELECT min(started) FROM workers w WHERE w.run = k.run), span.first) AS started,
            coalesce((SELECT max(ended) FROM workers w WHERE w.run = k.run), span.last) AS ended,
            (SELECT count(*) FROM workers w WHERE w.run = k.run) AS workers,
            (SELECT nullif(count(*), 0) FROM generations g WHERE g.run = k.run) AS generations,
            (SELECT max(step) FROM step_samples s WHERE s.run = k.run) AS steps,
            (SELECT count(*) FROM corrupt_lines c WHERE c.run = k.run) AS corrupt_lines,
            (SELECT sum(productive) / sum(wall) FROM goodput p WHERE p.run = k.run) AS goodput
        FROM known_runs k
        LEFT JOIN (SELECT run, min(time) AS first, max(time) AS last FROM events GROUP BY run) span ON span.run = k.run
    """,
}
"""The views' queries by name, in the order in which they need each other."""

RESULTS = Schema(
    migrations=(_tables, _views, _views_by_instance),
    version_table="dtf_schema",
    exported=(*VIEWS, "audits", "costs", "corrupt_lines"),
    if_older="bring it up to date with dtf results sync RUN_DIR",
    if_newer="use a newer dtf-lightning, or delete the file and sync anew (the event logs are the truth)",
    if_foreign="give a file of its own with --db",
    if_in_use="Close it there, or use another file with --db (it can always be synced anew)",
)
"""The schema of the database of runs."""
