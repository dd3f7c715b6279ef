"""Everybody dies; the run is started again from a checkpoint, in another world, at the exact sample."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from dtf_lightning.elastic.reports.ledger_audit import audit_run
from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("world", "data"), [(1, "map"), (2, "map"), (4, "map"), (2, "streams"), (4, "shards")])
def test_resume_at_the_exact_sample(make_run, world, data):
    """Three workers save after step 15, in mid-epoch, and all die in step 17; the second epoch's samples are still drawn once.

    `dtf audit` of both lives says so, too.
    """
    calm = Training(data=data, checkpoint_every=15, callbacks=("ema",), batch_norm=False)
    training = replace(calm, faults=(Fault(at="forward", step=17, generation=None),))
    first = make_run(training, **exactly(3))
    first.start("a", "b", "c")
    first.wait_until_over(failed=3)
    (checkpoint,) = (first.folder / "checkpoints").glob("*.ckpt")

    second = make_run(replace(calm, resume=str(checkpoint), checkpoint_every=0), **exactly(world))
    second.start(*"abcd"[:world])
    second.wait_until_over()
    results = second.results()
    assert len({json.dumps(result["same"]) for result in results.values()}) == 1
    assert len(results) == world

    consumed = Counter(second.audit().epochs[1].consumed)
    for path in first.folder.glob("ledger/*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "draw" and record["epoch"] == 1 and record["step"] < 15:
                consumed.update(record["samples"])
    assert consumed == Counter(range(training.num_samples))
    account = audit_run(first.folder, second.folder, dataset_size=training.num_samples)
    assert account.clean, "\n".join(account.describe())
    assert len(account.instances) == 2
