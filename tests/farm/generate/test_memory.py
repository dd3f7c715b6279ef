"""What is asked for covers what processes take; of more models it is `benchmarks/generate.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dtf_lightning import environment
from dtf_lightning.farm.generate.checks import DEVICES, Check, Choice, request
from dtf_lightning.farm.generate.sources.describing import Told, describe, parse_input

pytestmark = pytest.mark.process

PROGRAM = """
import pytest, torch
from torch import nn
{model}
model, batch = make(), {batch}
optimizer = torch.optim.Adam(model.parameters())
model(batch).square().mean().backward()
optimizer.step()
# Not `ru_maxrss`, in which the parent's memory counts as of before `exec`.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
MODEL = "make = lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), *[nn.Conv2d(64, 64, 3) for _ in range(2)])"
INPUT, BATCH = "input=float32[3,128,128]", "torch.randn(4, 3, 128, 128)"


def test_a_process_stays_below_what_is_asked_for(tmp_path):
    """Of convolutions in training, whose kernels take more than their tensors; no more than 2.5 times its peak is asked for."""
    path = tmp_path / "models.py"
    path.write_text(f"from torch import nn\n{MODEL}\n")
    described = describe(f"{path}:make", Told(inputs=(parse_input(INPUT),)))
    choice = Choice(devices=(DEVICES["cpu"],), batch_sizes=(4,), precisions=("float32",))
    asked = request(Check(name="c", title="", memory="training"), described, choice, DEVICES["cpu"])
    program = PROGRAM.format(model=MODEL, batch=BATCH)
    variables = environment.for_child({"OMP_NUM_THREADS": "1"}, without_prefix="TORCHELASTIC_")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1200, env=variables)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) / 1024
    assert peak <= asked.memory <= 2.5 * peak, (peak, asked.memory)
