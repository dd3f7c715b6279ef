"""The environment of an attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtf_lightning.farm.worker.folders import AttemptFolder
from dtf_lightning.farm.worker.orders import AttemptOrder
from dtf_lightning.farm.worker.variables import attempt_variables, cores, visible_devices


def test_what_comes_before_what():
    """The order before the worker, secrets before the order, the farm's own before all."""
    base = {"PATH": "/bin", "DTF_FARM_TOKEN": "secret", "HF_HOME": "/old", "A": "worker", "TMPDIR": "/tmp"}
    order = AttemptOrder(
        task="t", number=2, revision=5, command=("true",),
        environment={"A": "order", "B": "order", "DTF_FARM_TASK": "another"}, secrets={"B": "secret"},
    )  # fmt: skip
    found = attempt_variables(
        base, order,
        folder=AttemptFolder(Path("/w/t.5")), temporary=Path("/tmp/dtf-1"), cache=Path("/w/cache"), devices={}, allotment={}, mark="m",
    )  # fmt: skip
    assert found == {
        "PATH": "/bin", "A": "order", "B": "secret", "TMPDIR": "/tmp/dtf-1",
        "HF_HOME": "/w/cache/huggingface", "TORCH_HOME": "/w/cache/torch", "UV_CACHE_DIR": "/w/cache/uv",
        "DTF_FARM_RESULTS": "/w/t.5/results", "DTF_FARM_TASK": "t", "DTF_FARM_ATTEMPT": "2",
        "DTF_FARM_WORKSPACE": "/w/t.5/work", "DTF_FARM_DEVICES": "", "DTF_FARM_MARK": "m",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "allotment", "expected"),
    [
        ({"cpu": ("0", "1")}, {"cpu": {"0": 1000}}, {}),
        ({"gpu": ("0", "1")}, {"gpu": {"1": 500}}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"gpu": ("nvidia/0", "nvidia/3")}, {"gpu": {"nvidia/0": 1000, "nvidia/3": 1000}}, {"CUDA_VISIBLE_DEVICES": "0,3"}),
        ({"gpu": ("nvidia/0",)}, {}, {"CUDA_VISIBLE_DEVICES": ""}),
        ({"gpu": ("amd/0", "amd/1")}, {"gpu": {"amd/1": 1000}}, {"HIP_VISIBLE_DEVICES": "1"}),
        ({"gpu": ("amd/0",)}, {}, {"HIP_VISIBLE_DEVICES": "-1"}),
        ({"gpu": ("amd/0", "nvidia/0")}, {"gpu": {"amd/0": 1000}}, {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": ""}),
        ({"gpu": ("intel/0", "intel/1")}, {"gpu": {"intel/1": 1000}}, {"ZE_AFFINITY_MASK": "1"}),
        ({"gpu": ("intel/0",)}, {}, {}),
        ({"npu": ("huawei/4",)}, {"npu": {"huawei/4": 1000}}, {"ASCEND_RT_VISIBLE_DEVICES": "4"}),
        ({"tpu": ("unknown/0",)}, {"tpu": {"unknown/0": 1000}}, {}),
    ],
)  # fmt: skip
def test_devices_are_shown_and_hidden(devices, allotment, expected):
    found = visible_devices(devices, allotment)
    order = found.pop("CUDA_DEVICE_ORDER", None)
    assert found == expected
    assert (order == "PCI_BUS_ID") == ("CUDA_VISIBLE_DEVICES" in expected)


def test_a_worker_that_counts_in_its_own_order():
    """It was given some of the machine's devices by number, in CUDA's order or in another: that stays."""
    order = AttemptOrder(task="t", number=1, revision=1, command=("true",))
    options = {
        "temporary": Path("/t"),
        "folder": AttemptFolder(Path("/w/t.1")),
        "cache": Path("/c"),
        "devices": {"gpu": ("nvidia/3",)},
        "mark": "m",
    }
    for base, expected in (({}, "PCI_BUS_ID"), ({"CUDA_VISIBLE_DEVICES": "3"}, None)):
        found = attempt_variables(base, order, allotment={"gpu": {"nvidia/3": 1000}}, **options)
        assert (found["CUDA_VISIBLE_DEVICES"], found.get("CUDA_DEVICE_ORDER")) == ("3", expected)


def test_cores():
    assert cores({"cpu": {"3": 1000, "7": 500}, "gpu": {"0": 1000}}) == [3, 7]
    assert cores({}) == []
