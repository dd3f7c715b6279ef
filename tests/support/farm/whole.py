"""A whole farm as a user starts it: `dtf farm up` and the commands beside it, as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from dtf_lightning import environment
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.home import FarmHome, RunningFarm
from dtf_lightning.farm.worker.offer import keep_profile
from dtf_lightning.farm.worker.profile import WorkerProfile

DEADLINE = 90.0
"""Seconds: imports on a machine with six other busy processes."""
DTF = [sys.executable, "-m", "dtf_lightning"]


PROFILE = WorkerProfile(
    devices={"cpu": 2.0, "memory": 2000.0},
    device_names={"cpu": tuple(map(str, sorted(os.sched_getaffinity(0))))},
    labels=("linux",),
    hardware={},
    software={},
)
"""Of this machine as a worker keeps it. Finding it out takes seconds, and is what tests/farm/worker/test_profile.py does."""


class Farm:
    """Runs until `close`, which ends all that it has started, whatever state that is in."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home = FarmHome(folder=folder / "home")
        self.project = folder / "project"
        self.project.mkdir(exist_ok=True)
        self._variables = {
            **os.environ,
            environment.FARM_HOME: str(self.home.folder),
            "PYTHONUNBUFFERED": "1",
        }
        self.home.make()
        keep_profile(self.home.folder / "worker", PROFILE)
        self.start(*arguments)

    def start(self, *arguments: str) -> None:
        self.log = self.home.folder.parent / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*DTF, "farm", "up", "--port", "0", *arguments],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        poll_until(self._is_up_or_ended, DEADLINE, "the farm to come up")
        assert self.process.poll() is None, self.log.read_text()
        running = RunningFarm.read(self.home.running)
        assert running is not None
        self.url, self.token_file = running.url, running.token_file

    def _is_up_or_ended(self) -> bool:
        running = RunningFarm.read(self.home.running)
        return self.process.poll() is not None or (running is not None and running.pid == self.process.pid)

    def dtf(self, *arguments: str, **fields: Any) -> subprocess.CompletedProcess[bytes]:
        """Run `dtf farm ...` to its end."""
        with self.begin(*arguments, **fields) as process:
            out, err = process.communicate(timeout=DEADLINE)
            return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def begin(self, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """Start `dtf farm ...`."""
        return subprocess.Popen(
            [*DTF, "farm", *arguments],
            env={**self._variables, **variables},
            cwd=cwd or self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def client(self) -> Client:
        client = Client(self.url, self.token_file)
        client.connection.patience = DEADLINE
        return client

    def part(self, name: str) -> psutil.Process:
        """The process of its `coordinator`, `worker`, `keeper` or `etcd`."""
        return poll_until(lambda: self._find(name), DEADLINE, f"the farm's {name}")

    def _find(self, name: str) -> psutil.Process | None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if name in words[2:5] or any(word.endswith((f".{name}", f"/{name}")) for word in words[:3]):
                    return process
        return None

    def processes(self) -> list[psutil.Process]:
        """All of the farm: what its first process has started, those included that have lost their parent."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = " ".join([*process.cmdline(), *process.environ().values()])
                alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
                if alive and str(self.home.folder) in told:
                    found.append(process)
        return found

    def kill(self) -> None:
        """Power off: all of its processes at once."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> int:
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self.kill()

    def json(self, *arguments: str) -> Any:
        done = self.dtf(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
