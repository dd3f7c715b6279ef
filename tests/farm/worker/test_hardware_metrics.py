"""What an attempt took, as a series."""

from __future__ import annotations

import ctypes
import json
import threading
from types import SimpleNamespace

import pytest

from dtf_lightning.farm.worker.keeper import hardware_metrics
from dtf_lightning.farm.worker.keeper.hardware_metrics import THINNING, DeviceSampler, Series, summary
from dtf_lightning.hardware.nvml import DeviceUse, Nvml


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_bounded(tmp_path):
    """A year of samples every 15 s are 2 million; what is written grows with the logarithm of the time."""
    series, now, written = Series(tmp_path / "series", 15.0, 0.0), 0.0, 0
    series._path = tmp_path / "none" / "series"  # what is written does not matter here
    while now < 365 * 86400:
        now += series._interval
        assert series.is_due(now)
        series.add(now, {})
        written += 1
        assert not series.is_due(now + series._interval / 2)
    assert written < THINNING * 13


def test_a_disk_without_room_costs_the_sample(tmp_path):
    path = tmp_path / "series"
    path.symlink_to("/dev/full")
    Series(path, 1.0, 0.0).add(1.0, {"at": 1})
    assert summary(tmp_path / "gone") == {}


def test_a_summary(tmp_path):
    """Memory of all devices at one moment together, and the mean of their use; half a line is passed over."""
    path = tmp_path / "series"
    series = Series(path, 1.0, 0.0)
    series.add(1.0, {"at": 1.0, "cpu_seconds": 2.0, "memory": 3, "processes": 1})
    assert summary(path) == {}
    for at, memory, use in ((2.0, 10, 0.5), (3.0, 30, 1.0)):
        series.add(at, *({"at": at, "device": f"nvidia/{n}", "device_memory": memory, "use": use} for n in range(2)))
    with path.open("a") as file:
        file.write('{"at": 4.0, "device": "nvid')
    assert summary(path) == {"device_memory_peak": 60.0, "device_use_mean": 0.75}


class Library:
    def __init__(self):
        self.closed = False
        self.read_in: set[str] = set()

    def read(self, device):
        self.read_in.add(threading.current_thread().name)
        if device == "1":
            raise RuntimeError("it has fallen off the bus")
        return DeviceUse(memory=100, use=0.5)

    def close(self):
        self.closed = True


def test_devices_of_attempts(tmp_path):
    """Each attempt's own, when they are due; one that cannot be read costs its samples only."""
    library, now = Library(), [0.0]
    attempts = {tmp_path / "a": ("nvidia/0", "nvidia/1"), tmp_path / "b": ("amd/0",)}
    sampler = DeviceSampler(
        10.0, ["nvidia/0"], lambda: attempts, clock=lambda: (1000.0 + now[0], now[0]), open_library=lambda: library
    )
    sampler.sample()
    now[0] = 10.0
    sampler.sample()
    sampler.sample()
    sampler.close()
    assert lines(tmp_path / "a") == [{"at": 1010.0, "device": "nvidia/0", "device_memory": 100, "use": 0.5}]
    assert (tmp_path / "b").read_text() == ""
    assert library.closed


def test_without_devices_or_their_library(tmp_path):
    """No thread, and nothing is opened."""

    def missing():
        raise OSError("no libnvidia-ml.so.1")

    threads = threading.active_count()
    for devices, opened in ((["cpu0"], pytest.fail), (["nvidia/0"], missing)):
        DeviceSampler(1.0, devices, dict, clock=lambda: (0.0, 0.0), open_library=opened).close()
    assert threading.active_count() == threads


class Driver:
    """NVML's functions as the driver has them."""

    def __init__(self, failing=""):
        self.asked = []
        for name in (
            "nvmlInit_v2",
            "nvmlDeviceGetHandleByIndex_v2",
            "nvmlDeviceGetHandleByUUID",
            "nvmlDeviceGetMemoryInfo",
            "nvmlDeviceGetUtilizationRates",
            "nvmlShutdown",
        ):
            setattr(self, name, lambda *arguments, name=name: self._called(name, arguments, failing))

    def _called(self, name, arguments, failing):
        self.asked.append(name)
        if name == failing:
            return 15
        if name == "nvmlDeviceGetMemoryInfo":
            arguments[1]._obj[:] = [1000, 400, 600]
        elif name == "nvmlDeviceGetUtilizationRates":
            arguments[1]._obj[:] = [93, 20]
        return 0


@pytest.mark.parametrize(
    ("device", "by"), [("0", "nvmlDeviceGetHandleByIndex_v2"), ("GPU-1-2", "nvmlDeviceGetHandleByUUID")]
)
def test_nvml(device, by):
    driver = Driver()
    nvml = Nvml(lambda _: driver)
    assert nvml.read(device) == DeviceUse(memory=600, use=0.93)
    assert by in driver.asked
    nvml.close()
    assert driver.asked[-1] == "nvmlShutdown"


def test_nvml_that_fails():
    with pytest.raises(RuntimeError, match="nvmlDeviceGetMemoryInfo returned 15"):
        Nvml(lambda _: Driver("nvmlDeviceGetMemoryInfo")).read("0")
    with pytest.raises(RuntimeError, match="this NVML has no nvmlInit_v2"):
        Nvml(lambda _: SimpleNamespace())
    assert ctypes.c_uint is not None
    assert hardware_metrics.INTERVAL >= 1
