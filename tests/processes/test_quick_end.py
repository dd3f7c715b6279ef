"""A process that ends without taking its objects apart, beside one that does."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PROGRAM = """
import atexit, sys, weakref
from dtf_lightning.processes.quick_end import end_quickly

class Circle:
    def __init__(self, path):
        self.me, self.text, self.data = self, open(path + ".txt", "w"), open(path + ".bin", "wb")
    def __del__(self):
        print("freed")

circle = Circle(sys.argv[1])
circle.text.write("text")
circle.data.write(b"data")
closed = Circle(sys.argv[1] + ".closed")
closed.text.close()
atexit.register(print, "registered")
weakref.finalize(circle, print, "finalized")
if sys.argv[2] == "quickly":
    end_quickly()
    end_quickly()
try:
    sys.exit(3)
finally:
    print("finally")
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("quickly", ["finally", "registered", "finalized"]),
        ("slowly", ["finally", "registered", "finalized", "freed", "freed"]),
    ],
)
def test_what_a_program_counts_on_still_happens(tmp_path, how, said):
    """Exit code, `finally`, `atexit`, finalizers and what was not flushed; only circles are not freed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "file"), how], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert sorted(done.stdout.split()) == sorted(said)
    assert ((tmp_path / "file.txt").read_text(), (tmp_path / "file.bin").read_bytes()) == ("text", b"data")
