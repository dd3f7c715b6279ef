"""A training script for real torchrun: `train_script.py FOLDER TRAINING`, the latter as pickled hexadecimal digits."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from support.elastic.training import train

if __name__ == "__main__":
    train(
        pickle.loads(bytes.fromhex(sys.argv[2])),
        Path(sys.argv[1]),
        f"{os.environ['DTF_NODE']}.{os.environ['LOCAL_RANK']}",
    )
