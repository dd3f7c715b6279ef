"""A spare process: it imports what the training script imports, and waits until it is told which worker it is.

Started by `spares.py` as `python -u -c "... main(fd, script)"`, so that `__main__` is empty and becomes the script's. Rules
that this file guards:

* only modules of packages are imported beforehand, none that lies beside the script: what a user's own module does when
  it is imported happens once, in the worker;
* an import that fails fails again, and is seen, in the script;
* the agent's end closes the channel, and that ends a spare.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import importlib.util
import io
import json
import os
import socket
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from dtf_lightning import environment

READY = b"r"
LENGTH_BYTES = 8
LAZY = {"torch": ("torch.distributed", "torch._dynamo")}
"""Modules that the first step imports though no script names them: DDP's first forward imports torch._dynamo."""


def imported_modules(text: str) -> list[str]:
    """Return what a script imports at its top level, in order. Raises `SyntaxError`."""
    names = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return [name for name in dict.fromkeys(names) if name != "__future__"]


def is_packaged(module: str, script: Path) -> bool:
    """Return whether a module comes with Python or from a package, and not from the user's project."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    own = {script.resolve().parent, Path.cwd().resolve()}
    return all(
        "site-packages" in Path(place).parts or not any(folder in Path(place).resolve().parents for folder in own)
        for place in places
    )


def import_beforehand(script: Path) -> None:
    """Make as many of the script's imports as can be made without being the script."""
    try:
        named = imported_modules(script.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError):
        return  # the script itself shall fail
    for name in named:
        if is_packaged(name, script):
            for module in (name, *LAZY.get(name.partition(".")[0], ())):
                with contextlib.suppress(Exception):
                    importlib.import_module(module)


def main(channel_fd: int, ready_fd: int, script: str) -> None:
    """Import, wait, and become the worker. Returns when the script has ended."""
    sys.path[0] = str(Path(script).resolve().parent)  # as for `python SCRIPT`
    sys.argv = [script]
    with socket.socket(fileno=channel_fd) as channel:
        import_beforehand(Path(script))
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(ready_fd, READY)
        os.close(ready_fd)
        order = _receive(channel)
    if order is None:
        os._exit(0)  # the agent has gone, or does not need it; nothing of the user's has begun
    environment.replace(order["environment"])
    sys.argv = order["arguments"]
    _tell_lightning()
    become(script)


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    """Return the order, with standard output and error put in place; `None` at the channel's end."""
    head, fds, _, _ = socket.recv_fds(channel, LENGTH_BYTES, 2)
    if len(head) < LENGTH_BYTES:
        return None
    for fd, place in zip(fds, (1, 2), strict=False):
        os.dup2(fd, place)
        os.close(fd)
    with channel.makefile("rb") as stream:
        order: dict[str, Any] = json.loads(stream.read(int.from_bytes(head, "big")))
    return order


def _tell_lightning() -> None:
    """Correct Lightning's idea of the rank: it reads RANK when it is imported, and by now it is another one."""
    rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
    if rank_zero is not None:
        rank_zero.rank_zero_only.rank = int(environment.read("RANK") or 0)


def become(script: str) -> None:
    """Run the script as `__main__`, as `python SCRIPT` does."""
    namespace = sys.modules["__main__"].__dict__
    namespace.clear()
    namespace.update(
        __name__="__main__",
        __file__=script,
        __builtins__=builtins,
        __loader__=SourceFileLoader("__main__", script),
        __spec__=None,
        __package__=None,
        __doc__=None,
        __cached__=None,
        __annotations__={},
    )
    with io.open_code(str(Path(script).resolve())) as file:
        code = compile(file.read(), script, "exec")
    exec(code, namespace)
