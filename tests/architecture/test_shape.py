"""Sizes, docstrings, and the few things that only one place may do. Each exception stands beside its reason."""

from __future__ import annotations

import ast

import pytest

from support.source_tree import PACKAGE, ROOT, attributes, calls, definitions, is_record, sleeps, sources

MAX_FUNCTION_LINES = 60
MAX_FILES = 15
MAX_ATTRIBUTES = 15

# path:qualified name -> why it is long
LONG_FUNCTIONS: dict[str, str] = {}

# folder -> why it is full
FULL_FOLDERS: dict[str, str] = {}

# path:class -> why it holds so much
LARGE_CLASSES: dict[str, str] = {}

# path -> why it touches the environment
ENVIRONMENT_USERS = {
    "environment.py": "this is the one file",
}

# path -> why it sleeps
SLEEPERS = {
    "src/dtf_lightning/clock.py": "`poll_until`: the one place that waits for what nothing announces",
    "src/dtf_lightning/elastic/demo/interruption.py": "`poll_until`'s pause for the demo, which Ctrl-C ends",
    "src/dtf_lightning/elastic/reports/watch.py": "draws the screen anew at an interval, until Ctrl-C",
    "src/dtf_lightning/elastic/testkit/faults.py": "a laggard: time that passes is the fault",
    "src/dtf_lightning/etcd/client.py": "the random pause between two attempts of a call, so that nodes do not come at once",
    "src/dtf_lightning/etcd/connection.py": "between two rounds of asking servers that do not listen yet; ends with a diagnosis",
    "src/dtf_lightning/farm/http.py": "between two rounds of asking coordinators that do not answer; ends with their names",
    "src/dtf_lightning/farm/server/lists/summary.py": "`sleep(0)`, as the next one",
    "src/dtf_lightning/farm/server/lists/tasks.py": "`sleep(0)`: others get their turn on the loop, no time passes",
    "src/dtf_lightning/farm/server/scaling/seeing.py": "`sleep(0)`, likewise",
    "src/dtf_lightning/farm/server/watching/seeing.py": "`sleep(0)`, likewise",
    "src/dtf_lightning/farm/testkit/storm.py": "a storm: time that passes between its faults is part of it",
    "src/dtf_lightning/farm/worker/service/link.py": "between two rounds of dialling coordinators, at random: they are not stormed",
    "src/dtf_lightning/processes/watchdog.py": "looks again for processes that are being started; nothing announces them",
    "tests/elastic/agent/test_outage.py": "etcd is frozen for longer than a lease: nothing happens meanwhile, that is the test",
    "tests/farm/page/test_live.py": "`sleep(0)`: others get their turn on the loop, no time passes",
    "tests/farm/server/test_async_client.py": "`sleep(0)`, likewise",
    "tests/support/elastic/programs/link_worker.py": "a step of training, which takes time",
    "tests/support/elastic/programs/node_process.py": "looks at its workers as torchelastic does, later than the agent",
    "tests/support/elastic/programs/restart_script.py": "a step of training, which takes time",
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


def test_nobody_sleeps():
    """Source and tests wait for events with a deadline, or move a clock of their own. A reason stands in SLEEPERS."""
    found = {f"{top}/{path}": sleeps(text) for top in ("src", "tests") for path, text in sources(ROOT / top)}
    assert {path for path, places in found.items() if places} == SLEEPERS.keys(), found


@pytest.mark.parametrize(
    "text",
    [
        "time.sleep(1)",
        "from time import sleep",
        "threading.Event().wait(1)",
        "def f():\n    one, never = 1, Event()\n    while not one:\n        never.wait(0.1)",
        "class A:\n    def f(self):\n        self.never = threading.Event()\n    def g(self):\n        self.never.wait(1)",
        "queue.Queue().get(timeout=1)",
        "select.select([], [], [], 1)",
        "signal.sigtimedwait([], 1)",
        "subprocess.run(['sleep', '1'])",
    ],
)
def test_every_way_of_sleeping_is_seen(text):
    """So that the test above means what it says."""
    assert sleeps(text)


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    told = Event()\n    ask(told.set)\n    assert told.wait(1)",
        "def f():\n    told = Event()\n    ask(told)\n    assert told.wait(1)",
        "class A:\n    def f(self):\n        self.told = Event()\n        self.told.wait()\n    def g(self):\n        self.told.set()",
        "select.select([reader], [], [], 1)",
    ],
)
def test_waiting_for_somebody_is_not_sleeping(text):
    assert not sleeps(text)
