"""`latest_runs`: how runs ended on which worker, also attempts after which the task was tried again elsewhere."""

from __future__ import annotations

from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tests.runs import CODE, IS_RUN, TEST
from dtf_lightning.farm.rules.watching.observation import RunSeen

LATEST = 5_000
"""Results that are looked at."""

_RUNS = f"""
    WITH latest AS MATERIALIZED (
        SELECT task, project, {TEST} AS test, coalesce(workers[1], '') AS worker, {CODE} AS code, recorded, attempt FROM farm.results
        WHERE {IS_RUN} ORDER BY recorded DESC LIMIT {LATEST}
    )
    SELECT project, test, worker, passed FROM (
        SELECT project, test, worker, code = 0 AS passed, recorded, attempt AS number FROM latest WHERE code <> 3 AND worker <> ''
        UNION ALL
        SELECT project, test, failed.workers[1], false, recorded, failed.number FROM farm.failed_attempts failed JOIN latest USING (task)
        WHERE len(failed.workers) > 0 AND (starts_with(failed.reason, 'exit code ') OR starts_with(failed.reason, 'ended by '))
    ) ORDER BY recorded DESC, number DESC
"""


def latest_runs(results: FarmResults) -> list[RunSeen]:
    """Return them, the latest first, without those that were lost with their worker. Raises `ResultsBusy`."""
    with results.reading() as reader:
        rows = reader.execute(_RUNS).fetchall()
    return [RunSeen(test=(project, test), worker=worker, passed=passed) for project, test, worker, passed in rows]
