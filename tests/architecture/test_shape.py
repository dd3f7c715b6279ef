"""Sizes, docstrings, and the few things that only one place may do. Each exception stands beside its reason."""

from __future__ import annotations

import ast

from support.source_tree import PACKAGE, ROOT, attributes, calls, definitions, is_record, sources

MAX_FUNCTION_LINES = 60
MAX_FILES = 15
MAX_ATTRIBUTES = 15

# path:qualified name -> why it is long
LONG_FUNCTIONS: dict[str, str] = {}

# folder -> why it is full
FULL_FOLDERS: dict[str, str] = {}

# path:class -> why it holds so much
LARGE_CLASSES: dict[str, str] = {
    "elastic/agent/live/agent.py:Agent": "about to be divided",
    "elastic/agent/live/leader.py:Leader": "about to be divided",
    "elastic/agent/mesh.py:Mesh": "about to be divided",
    "elastic/agent/restart/agent.py:RestartAgent": "about to be divided",
    "elastic/lightning/callbacks/divergence_stopping.py:DivergenceStopping": "about to be divided",
    "elastic/lightning/reporting/recorder.py:RunRecorder": "about to be divided",
    "elastic/link/worker_link.py:WorkerLink": "about to be divided",
}

# path -> why it touches the environment
ENVIRONMENT_USERS = {
    "environment.py": "this is the one file",
}

# path -> why it sleeps
SLEEPERS = {
    "support/leaks.py": "waits for another thread's close(), which nothing announces; only when something is left over",
}


def test_functions_fit_a_screen():
    """At most 60 lines with their docstring, or a reason in LONG_FUNCTIONS; an entry no longer needed goes."""
    long = {
        f"{path}:{name}"
        for path, text in sources()
        for name, node in definitions(text)
        if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS.keys()


def test_folders_stay_small():
    """At most 15 files in a folder, or a reason in FULL_FOLDERS; an entry no longer needed goes."""
    full = {
        str(folder.relative_to(PACKAGE))
        for folder in PACKAGE.rglob("*")
        if folder.is_dir()
        and folder.name != "__pycache__"
        and sum(path.is_file() for path in folder.iterdir()) > MAX_FILES
    }
    assert full == FULL_FOLDERS.keys()


def test_classes_hold_little():
    """At most 15 attributes, or a reason in LARGE_CLASSES; an entry no longer needed goes. Records are lists of fields."""
    large = {
        f"{path}:{name}"
        for path, text in sources()
        for name, node in definitions(text)
        if isinstance(node, ast.ClassDef) and not is_record(node) and len(attributes(node)) > MAX_ATTRIBUTES
    }
    assert large == LARGE_CLASSES.keys()


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
