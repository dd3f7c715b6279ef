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
    for name, query in VIEWS.items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


_BUCKETS = ", ".join(f"coalesce((data->'seconds'->>'{b.value}')::DOUBLE, 0) AS {b.value}" for b in Bucket)
_WORKER = "run, source AS worker, coalesce((data->>'incarnation')::INTEGER, 0) AS incarnation"

VIEWS = {
    "workers": """
        SELECT s.run, s.source AS worker, (s.data->>'incarnation')::INTEGER AS incarnation, s.data->>'node' AS node,
            s.data->>'host' AS host, (s.data->>'pid')::BIGINT AS pid, (s.data->>'joiner')::BOOLEAN AS joiner,
            make_timestamp(((s.data->>'started_at')::DOUBLE * 1e6)::BIGINT) AS started,
            coalesce(e.time, l.time) AS ended, coalesce(e.data->>'reason', 'killed') AS ending
        FROM events s
        LEFT JOIN events e ON e.kind = 'worker_ended' AND e.run = s.run AND e.file = s.file
        LEFT JOIN (
            SELECT run, file, max(time) AS time FROM (
                SELECT run, file, time FROM events UNION ALL SELECT run, file, time FROM step_samples
            ) GROUP BY run, file
        ) l ON l.run = s.run AND l.file = s.file
        WHERE s.kind = 'worker_started'
    """,
    "generations": """
        SELECT e.run, (e.data->>'generation')::INTEGER AS generation, any_value(e.data->>'rescale') AS rescale,
            any_value(e.data->>'reason') AS reason, any_value((e.data->>'world_size')::INTEGER) AS world_size,
            min((e.data->>'step')::BIGINT) AS step, min((e.data->>'epoch')::INTEGER) AS epoch, min(e.time) AS began,
            any_value(CAST(e.data->'members' AS VARCHAR[])) AS members,
            any_value(CAST(e.data->'failed' AS VARCHAR[])) AS failed
        FROM events e WHERE e.kind = 'generation_entered'
            -- In restart mode only agents write, and know no steps.
            OR (e.kind = 'generation_formed' AND NOT EXISTS (
                SELECT 1 FROM events w WHERE w.run = e.run AND w.kind = 'generation_entered'
            ))
        GROUP BY e.run, (e.data->>'generation')::INTEGER
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
            (data->>'redrawn')::BOOLEAN AS redrawn
        FROM events WHERE kind = 'worker_rescaled'
    """,
    "steps": """
        SELECT run, source AS worker, time, generation, world_size, rank, epoch, step, steps, seconds,
            steps / nullif(seconds, 0) AS steps_per_second, samples / nullif(seconds, 0) AS samples_per_second,
            samples, samples / nullif(steps, 0) AS global_batch, data_wait, loss, lr, rss, device_memory
        FROM step_samples
    """,
    "checkpoints": """
        SELECT s.run, s.time, (s.data->>'generation')::INTEGER AS generation, (s.data->>'step')::BIGINT AS step,
            (s.data->>'epoch')::INTEGER AS epoch, s.data->>'path' AS path, (s.data->>'seconds')::DOUBLE AS seconds,
            (s.data->>'size')::BIGINT AS size,
            (SELECT min(p.time) FROM events p WHERE p.kind = 'checkpoint_pruned' AND p.run = s.run
                AND p.data->>'path' = s.data->>'path' AND p.time >= s.time) AS pruned
        FROM events s WHERE s.kind = 'checkpoint_saved'
    """,
    "evaluations": """
        SELECT run, time, generation, epoch, step, seconds, metric, (metrics->>metric)::DOUBLE AS value FROM (
            SELECT run, time, (data->>'generation')::INTEGER AS generation, (data->>'epoch')::INTEGER AS epoch,
                (data->>'step')::BIGINT AS step, (data->>'seconds')::DOUBLE AS seconds, data->'metrics' AS metrics,
                unnest(json_keys(data->'metrics')) AS metric
            FROM events WHERE kind = 'evaluated'
            QUALIFY row_number() OVER (PARTITION BY run, step ORDER BY time DESC) = 1
        )
    """,
    "goodput": f"""
        SELECT {_WORKER}, (data->>'wall')::DOUBLE AS wall, {_BUCKETS} FROM events WHERE kind = 'time_spent'
        QUALIFY row_number() OVER (PARTITION BY run, file ORDER BY line DESC) = 1
    """,
    "runs": """
        SELECT k.run, k.folder,
            least((SELECT min(started) FROM workers w WHERE w.run = k.run), span.first) AS started,
            coalesce((SELECT max(ended) FROM workers w WHERE w.run = k.run), span.last) AS ended,
            (SELECT count(*) FROM workers w WHERE w.run = k.run) AS workers,
            (SELECT max(generation) FROM generations g WHERE g.run = k.run) AS generations,
            (SELECT max(step) FROM step_samples s WHERE s.run = k.run) AS steps,
            (SELECT count(*) FROM corrupt_lines c WHERE c.run = k.run) AS corrupt_lines,
            (SELECT sum(productive) / sum(wall) FROM goodput p WHERE p.run = k.run) AS goodput
        FROM known_runs k
        LEFT JOIN (SELECT run, min(time) AS first, max(time) AS last FROM events GROUP BY run) span ON span.run = k.run
    """,
}
"""The views' queries by name, in the order in which they need each other."""

RESULTS = Schema(
    migrations=(_tables, _views),
    version_table="dtf_schema",
    exported=(*VIEWS, "audits", "costs", "corrupt_lines"),
    if_older="bring it up to date with dtf results sync RUN_DIR",
    if_newer="use a newer dtf-lightning, or delete the file and sync anew (the event logs are the truth)",
    if_foreign="give a file of its own with --db",
    if_in_use="Close it there, or use another file with --db (it can always be synced anew)",
)
"""The schema of the database of runs."""
