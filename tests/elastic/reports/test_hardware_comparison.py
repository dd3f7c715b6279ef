"""The nodes of a run beside each other in its report."""

from __future__ import annotations

from dtf_lightning.elastic.events import ELASTIC_EVENTS, HardwareSeen, WorkersPaced
from dtf_lightning.elastic.reports.report_data import gather
from dtf_lightning.elastic.reports.text import lines, warnings
from dtf_lightning.events.log import EventLog, events_path


def add(run_dir, *events):
    log = EventLog(ELASTIC_EVENTS, events_path(run_dir, "extra"))
    for event in events:
        log.write(event)
    log.close()


def hardware(node, **has):
    return HardwareSeen(at=11.0, source=f"{node}/0", generation=1, node=node, hardware=has)


def test_mixed_pool(store, run_dir):
    """What differs is named with who has what; disks and host names may differ."""
    gpu = {"name": "H", "memory": 80 << 30}
    add(
        run_dir,
        hardware("a", cores=8, host="one", devices=[gpu, gpu], memory=64 << 30, driver="NVIDIA 550"),
        hardware("b", cores=8, host="two", devices=[gpu, gpu], memory=64 << 30, driver="NVIDIA 550"),
        hardware("c", cores=4, host="three", devices=[], memory=64 << 30),
    )
    store.sync(run_dir)
    account = gather(store, "r")
    assert account["mixed"] == ["cores", "devices", "driver"]
    assert [line for line in warnings(account) if line.startswith("the nodes differ")] == [
        "the nodes differ: cores 8 on a, b; 4 on c",
        "the nodes differ: devices 2 x H (81920 MiB) on a, b; none on c",
        "the nodes differ: driver NVIDIA 550 on a, b; unknown on c",
    ]


def test_straggler(store, run_dir):
    """Relative to the median worker, over all looks; the slow one is named among the warnings."""
    for at in range(5):
        busy = {"a/0": 0.02, "b/0": 0.021, "c/0": 0.05 + 0.001 * at}
        add(run_dir, WorkersPaced(at=12.0 + at, source="a/0", generation=1, step=at, seconds=0.06, busy=busy))
    store.sync(run_dir)
    account = gather(store, "r")
    assert [(pace["worker"], round(pace["relative"], 2)) for pace in account["paces"]] == [
        ("a/0", 0.95), ("b/0", 1.0), ("c/0", 2.48),
    ]  # fmt: skip
    assert [slow["worker"] for slow in account["stragglers"]] == ["c/0"]
    assert (
        "attention: c/0 is slow: busy 52.0 ms of a step, 2.48 times the median worker; all others wait for it"
        in lines(account)
    )
    assert "Workers beside the median" in lines(account)
