"""`CommandHandler`: a program of the operator's, on the leader's machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass

from dtf_lightning import environment
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.alerts.notice import Notice

MAX_SAID = 300


class CommandFailed(DtfError):
    """It ended with an error, or not in time."""


@dataclass(frozen=True, kw_only=True)
class CommandHandler:
    """Runs a program, without a shell, with the notice as JSON on its standard input and the main things in its environment."""

    command: tuple[str, ...]

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`. What runs too long is ended, with what it has started."""
        told = {
            "DTF_ALERT_KEY": notice.key,
            "DTF_ALERT_STEP": notice.step,
            "DTF_ALERT_SEVERITY": notice.severity,
            "DTF_ALERT_TITLE": notice.title.replace("\0", ""),
        }
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment.starting_with(""), **told},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(json.dumps(notice.as_json()).encode(), timeout)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"{self.command[0]} has not ended within {timeout:g} s, and was ended") from None
        finally:
            _end_group(process)
        if process.returncode:
            text = said.decode(errors="replace").strip()[-MAX_SAID:]
            raise CommandFailed(f"{self.command[0]} has ended with {process.returncode}: {text or 'it said nothing'}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
