"""Finds the user's own files that a training script is made of: the script, the modules it imports, its configuration.

Nothing is imported or run: the files are parsed. A module is the user's own if it lies below a folder from which Python
would import it, and neither in site-packages nor in the standard library.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_FILES = 2000
"""The number of files after which the search ends; it takes about a millisecond for each."""
CONFIGURATIONS = {".yaml", ".yml", ".json", ".toml"}
"""Endings of files named on the command line that may name a callback by its class, as LightningCLI's do."""


def own_files(script: str, arguments: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the files, the script first, each once.

    Args:
        script: the script's path, or a module's name, as torchrun was given it.
        arguments: the script's own; those that are configuration files count.
    """
    places = _places(script)
    waiting = [Path(script)] if Path(script).is_file() else list(_files_of(script, places))
    seen: set[Path] = set()
    while waiting and len(seen) < MOST_FILES:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        yield path
        waiting += [file for module in _imported(path, places) for file in _files_of(module, places)]
    if seen:
        yield from (path for path in map(Path, _values(arguments)) if path.suffix in CONFIGURATIONS and path.is_file())


def _places(script: str) -> list[Path]:
    """Return the folders from which the script's own modules are imported."""
    first = Path(script).resolve().parent if Path(script).is_file() else Path.cwd()
    library = {
        Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    }
    paths = [Path(entry).resolve() for entry in sys.path if entry]
    own = [path for path in paths if path.is_dir() and library.isdisjoint({path, *path.parents})]
    return list(dict.fromkeys([first, *own]))


def _imported(path: Path, places: Sequence[Path]) -> Iterator[str]:
    """Yield the absolute names of what a file imports, at its top or in its functions."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path, places)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, path: Path, places: Sequence[Path]) -> str:
    """Return the name of the module that is imported from; empty for a relative one outside of all places."""
    if not node.level:
        return node.module or ""
    package = path.resolve().parent
    for _ in range(node.level - 1):
        package = package.parent
    for place in places:
        if package.is_relative_to(place) and package != place:
            return ".".join([*package.relative_to(place).parts, *([node.module] if node.module else [])])
    return ""


def _files_of(module: str, places: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of a module and of the packages around it that are there, from the first place that has any."""
    parts = module.split(".")
    for place in places:
        found = [
            path
            for end in range(1, len(parts) + 1)
            for path in (place.joinpath(*parts[:end]).with_suffix(".py"), place.joinpath(*parts[:end], "__init__.py"))
            if path.is_file()
        ]
        main = place.joinpath(*parts, "__main__.py")
        if found:
            yield from found
            if main.is_file():
                yield main
            return


def _values(arguments: Sequence[str]) -> Iterator[str]:
    """Yield what may be a path: the arguments, and what stands behind `=` in `--config=FILE`."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        yield value if equals and name.startswith("-") else argument
