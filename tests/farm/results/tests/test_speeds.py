"""What is known of how fast workers were at parts of a job."""

from __future__ import annotations

from dataclasses import replace

from dtf_lightning.farm.orchestrate.devices import Measured
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.results.orchestrations.speeds import measured
from support.farm.results import seen_run


def test_parts_of_jobs_of_a_name_that_completed(results):
    """Each of the last two seconds; others' parts, tasks that only begin alike, and what failed tell nothing."""
    runs = [
        seen_run(number, end, project="p", name=name, workers=workers)
        for number, (end, name, workers) in enumerate(
            [
                ("passed", "j[0:50]", ("w1",)),
                ("passed", "j[50:60]", ("w2",)),
                ("failed", "j[60:70]", ("w2",)),
                ("passed", "j[merge]", ("w2",)),
                ("passed", "jj[0:9]", ("w2",)),
                ("passed", "j[0:50]", ("w1", "w2")),
            ]
        )
    ]
    other = seen_run(9, "passed", project="q", name="j[0:7]")
    never = seen_run(10, "passed", project="p", name="j[0:8]")
    never = replace(never, envelope=replace(never.envelope, started=None, outcome=TaskOutcome.COMPLETED))
    results.take_in([*runs, other, never])
    assert measured(results, "p", "j") == [
        Measured(worker="w2", inputs=10, seconds=2.0),
        Measured(worker="w1", inputs=50, seconds=2.0),
    ]
    assert measured(results, "p", "k") == []
