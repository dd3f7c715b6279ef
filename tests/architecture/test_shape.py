"""Sizes, docstrings, and the few things that only one place may do. Each exception stands beside its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "dtf_lightning"

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450

# path:qualified name -> why it is long
LONG_FUNCTIONS: dict[str, str] = {}

# path -> why it is long
LONG_FILES: dict[str, str] = {}

# path -> why it touches the environment
ENVIRONMENT_USERS = {
    "environment.py": "this is the one file",
}

# path -> why it sleeps
SLEEPERS = {
    "support/leaks.py": "waits for another thread's close(), which nothing announces; only when something is left over",
}


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def sources(root: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), path.read_text()


def definitions(text: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every class and function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
                yield name[:-1], child
            yield from walk(child, name)

    return walk(parse(text), "")


def is_record(node: ast.ClassDef) -> bool:
    """A dataclass or Enum: the names of its fields say it all."""
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or any(ast.unparse(base).endswith("Enum") for base in node.bases)


def calls(text: str, *names: str) -> bool:
    """Whether the code (not its strings or comments) uses one of the dotted names."""
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) in names for node in ast.walk(parse(text)))


def test_functions_fit_a_screen():
    """At most 60 lines with their docstring, or a reason in LONG_FUNCTIONS; an entry no longer needed goes."""
    long = {
        f"{path}:{name}"
        for path, text in sources()
        for name, node in definitions(text)
        if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS.keys()


def test_files_stay_small():
    """At most 450 lines, or a reason in LONG_FILES; an entry no longer needed goes."""
    assert {path for path, text in sources() if text.count("\n") > MAX_FILE_LINES} == LONG_FILES.keys()


def test_public_classes_and_functions_have_a_docstring():
    """Methods may go without where name and types say it, and so may records of named fields."""
    missing = [
        f"{path}:{name}"
        for path, text in sources()
        for name, node in definitions(text)
        if "." not in name
        and not name.startswith("_")
        and not ast.get_docstring(node)
        and not (isinstance(node, ast.ClassDef) and is_record(node))
    ]
    assert not missing


def test_one_file_reads_the_environment():
    """Settings come as arguments; environment.py asks for what was not given."""
    users = {path for path, text in sources() if calls(text, "os.environ", "os.getenv", "os.putenv", "os.unsetenv")}
    assert users == ENVIRONMENT_USERS.keys()


def test_tests_do_not_sleep():
    """They wait for events with a deadline, or move a clock of their own."""
    assert {path for path, text in sources(ROOT / "tests") if calls(text, "time.sleep")} == SLEEPERS.keys()
