"""`hook`: a command of the operator's starts workers. It reads one JSON object and says by its exit code whether that was done."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted

TAIL = 300


class HookProvider(Provider):
    """Runs a command. The same workers may be asked for twice: the command must start each name once."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command

    def start(self, wanted: WorkersWanted) -> None:
        """See `Provider`."""
        told = {
            "action": "start",
            "pool": wanted.pool,
            "workers": [{"name": name, "command": ["dtf", *wanted.words(name)]} for name in wanted.names],
            "total": wanted.total,
            "devices": wanted.devices,
            "labels": list(wanted.labels),
            "coordinator": wanted.coordinator,
        }
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ProviderFailed(f"{self._command[0]} cannot be run: {error.strerror or error}") from error
        try:
            _, errors = process.communicate(json.dumps(told).encode(), timeout=wanted.timeout)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise ProviderFailed(
                f"{self._command[0]} has not ended within {wanted.timeout:g} s and was killed"
            ) from error
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            said = lines[-1][-TAIL:] if lines else "it said nothing on its standard error"
            raise ProviderFailed(f"{self._command[0]} ended with {process.returncode}: {said}")
