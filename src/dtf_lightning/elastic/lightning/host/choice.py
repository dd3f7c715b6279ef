"""`find` decides which of Lightning's two packages this process uses: `lightning.pytorch` or `pytorch_lightning`.

They are two copies of the same code that do not know each other: a Trainer of one package does not recognize callbacks
of the other. `pip install lightning` installs both. The classes of dtf_lightning derive from those of one package, which
is chosen when they are first imported; a Trainer of the other is refused, with the line to change.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from types import FrameType
from typing import Any

from dtf_lightning.errors import SettingsError

LIGHTNING, PYTORCH_LIGHTNING = NAMES = ("lightning.pytorch", "pytorch_lightning")

PUBLIC_PARTS = ("callbacks", "cli", "loggers", "plugins", "profilers", "strategies", "tuner")
"""Subpackages from which users import; all other names they import from the package itself."""


def choose(sources: Iterable[str], loaded: Iterable[str], installed: Iterable[str]) -> str:
    """Return the package from which the classes of dtf_lightning derive.

    Args:
        sources: source texts of the files that import dtf_lightning, innermost first: a module of the script, then the
            file that imports that module, and so on.
        loaded: packages of `NAMES` that have been imported.
        installed: packages of `NAMES` that could be imported.

    The imports in the innermost source decide; otherwise the package that is loaded, if it is one; otherwise the other
    sources; otherwise the first that is installed. Raises `ImportError` if neither is installed.
    """
    here, there = set(loaded), list(installed)
    for number, source in enumerate(sources):
        named = named_in(source) & {*there, *here}
        if len(named) == 1:
            return named.pop()
        if number == 0 and len(here) == 1:
            return here.pop()
    if len(here) == 1:
        return here.pop()
    if not there:
        raise ImportError("dtf_lightning needs Lightning: pip install lightning (or pytorch-lightning)")
    return there[0]


def named_in(source: str) -> set[str]:
    """Return the packages of `NAMES` that a source text imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
    return {name for name in NAMES if name.partition(".")[0] in roots}


def importers() -> Iterator[str]:
    """Yield the source texts of the files that import this package now, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    seen: set[str] = set()
    while frame is not None:
        name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        ours = name.partition(".")[0] in ("dtf_lightning", "importlib") or file.startswith("<frozen")
        if not ours and file not in seen:
            seen.add(file)
            yield "".join(linecache.getlines(file, frame.f_globals))
        frame = frame.f_back


def find() -> str:
    """Return the package for this process, judged by the files that import this one now. Raises `ImportError`."""
    loaded = [name for name in NAMES if name in sys.modules]
    return choose(importers(), loaded, [name for name in NAMES if name in loaded or _is_installed(name)])


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def package_of(thing: Any) -> str | None:
    """Return the package of an object's class, or of its first base class that is Lightning's; `None` if there is none."""
    found = _origin(thing)
    return found[0] if found is not None else None


def _origin(thing: Any) -> tuple[str, type] | None:
    for cls in type(thing).__mro__:
        for name in NAMES:
            if f"{cls.__module__}.".startswith(f"{name}."):
                return name, cls
    return None


def refuse_another(trainer: Any, ours: str) -> None:
    """Raise `SettingsError` if the trainer, or one of its callbacks or loggers, is from the package that is not `ours`."""
    theirs = package_of(trainer)
    if theirs is not None and theirs != ours:
        raise SettingsError(
            f"this Trainer is {theirs}'s, but when dtf_lightning was imported, everything spoke for {ours}: the two "
            f"packages are copies that do not know each other. Write `import {theirs}` above the first import of "
            "dtf_lightning."
        )
    for thing in (*trainer.callbacks, *trainer.loggers):
        origin = _origin(thing)
        if origin is not None and origin[0] != ours:
            name, cls = origin
            part = cls.__module__.removeprefix(f"{name}.").partition(".")[0]
            home = f"{ours}.{part}" if part in PUBLIC_PARTS else ours
            raise SettingsError(
                f"{type(thing).__name__} is {name}'s, the Trainer {ours}'s: the two packages are copies that do not know "
                f"each other. Write `from {home} import {cls.__name__}`."
            )
