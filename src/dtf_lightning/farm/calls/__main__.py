"""`python -m dtf_lightning.farm.calls`: the process of a task that is a call."""

from __future__ import annotations

import sys

from dtf_lightning.farm.calls.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
