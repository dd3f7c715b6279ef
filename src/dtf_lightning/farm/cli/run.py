"""`dtf farm run`: a command on the farm as if it ran here; or a plan, which `plan.py` runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, INTERRUPTED
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.exit_codes import exit_code
from dtf_lightning.farm.cli.options import connect, environment_of, inputs_of, needs_of, plan_options
from dtf_lightning.farm.cli.streams.logs import show_logs
from dtf_lightning.farm.cli.streams.stdin import InputSender, has_input

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client


def run(arguments: argparse.Namespace) -> int:
    """Submit a command, show its output, and return its exit code. Ctrl-C cancels it."""
    from dtf_lightning.farm.cli.plan import run_plan

    if _is_plan(arguments):
        path, *words = arguments.command_line
        return run_plan(path, plan_options(path, words, arguments))
    if arguments.no_wait or arguments.json:
        raise SettingsError("--no-wait and --json are options of plans; `dtf farm submit -- COMMAND` does not wait")
    with connect(arguments) as farm:
        forwards = not (arguments.array or arguments.key or arguments.reuse) and has_input()
        task = submit(farm, arguments, stdin=forwards)
        try:
            with contextlib.closing(InputSender(farm, task)) if forwards else contextlib.nullcontext():
                return _wait_for_array(farm, task) if arguments.array else _follow(farm, task)
        except KeyboardInterrupt:
            farm.cancel(task, "Ctrl-C")
            print(f"dtf farm run: task {task} is cancelled", file=sys.stderr)
            return INTERRUPTED


def submit_only(arguments: argparse.Namespace) -> int:
    """Submit a command, or a plan, and print its id."""
    from dtf_lightning.farm.cli.plan import run_plan

    arguments.no_wait = True
    if _is_plan(arguments):
        path, *words = arguments.command_line
        return run_plan(path, plan_options(path, words, arguments))
    with connect(arguments) as farm:
        task = submit(farm, arguments)
    print(json.dumps({"task_id": task}) if arguments.json else task)
    return DONE


def _is_plan(arguments: argparse.Namespace) -> bool:
    return bool(arguments.command_line) and arguments.command_line[0].endswith((".yaml", ".yml"))


def submit(farm: Client, arguments: argparse.Namespace, *, stdin: bool = False) -> str:
    """Submit what the arguments say; returns the task's id. `stdin`: its input follows. Raises `SettingsError`."""
    from dtf_lightning.farm.record.task_id import array_id, new_task_id
    from dtf_lightning.farm.sources import pack

    command = arguments.command_line[1:] if arguments.command_line[:1] == ["--"] else arguments.command_line
    if not command:
        raise SettingsError("nothing to run: write the command behind --, as in: dtf farm run -- pytest tests/")
    task = array_id(new_task_id(time.time())) if arguments.array else new_task_id(time.time())
    request = {
        "task_id": task,
        "command": command,
        "name": arguments.named,
        "needs": needs_of(arguments),
        "gang": arguments.gang,
        "array": arguments.array,
        "environment": environment_of(arguments),
        "secrets": arguments.secret,
        "permissions": arguments.permission,
        "stdin": stdin,
        "key": arguments.key,
        "reuse": arguments.reuse,
        "inputs": inputs_of(arguments, farm),
        "timeout": arguments.timeout,
        "retries": arguments.retries,
        "priority": arguments.priority,
        "project": arguments.project,
        "dependencies": arguments.after,
    }
    if not arguments.no_source:
        source = pack(Path.cwd())
        if source.num_files:
            request["source"], request["folder"] = farm.send_source(source), source.folder
    (told,) = farm.submit_all([request], strict=arguments.strict)
    if told.get("warning"):
        print(f"dtf farm: {told['warning']}; it waits until one comes", file=sys.stderr)
    return str(told["task_id"])


def _wait_for_array(farm: Client, array: str) -> int:
    print(f"dtf farm run: array {array}; `dtf farm logs {array}[N]` shows instance N", file=sys.stderr)
    info = farm.wait(array)
    counts = (info.raw.get("results") or {}).get("counts") or {}
    print(f"dtf farm run: {', '.join(f'{number} {name}' for name, number in sorted(counts.items()))}", file=sys.stderr)
    return exit_code(info)


def _follow(farm: Client, task: str) -> int:
    shown = 0
    while True:
        info = farm.next_attempt(task, shown)
        if info.done and info.reused_from:
            print(f"dtf farm run: {info.reason}; this is its output", file=sys.stderr)
            show_logs(farm, info, follow=False)
        if info.done and info.revision in (0, shown):
            return exit_code(info)
        if shown:
            number = info.raw["metadata"]["attempt"]
            print(f"dtf farm run: the task is tried again, attempt {number}", file=sys.stderr)
        shown = info.revision
        show_logs(farm, info, follow=True, revision=shown)
