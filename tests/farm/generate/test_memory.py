"""What is asked for covers what processes take; of 20 models it is `benchmarks/generate.py`."""

from __future__ import annotations

import os
import sys

import pytest

from dtf_lightning.farm.generate.checks import DEVICES, Check, Choice, request
from dtf_lightning.farm.generate.sources.describing import Told, describe, parse_input

pytestmark = pytest.mark.process

PROGRAM = """
import pytest, torch
from torch import nn
{model}
model, batch = make(), {batch}
if {train}:
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(batch).square().mean().backward()
        optimizer.step()
else:
    with torch.no_grad():
        model(batch)
"""
CASES = {
    "linear": (
        "make = lambda: nn.Sequential(*[nn.Linear(3000, 3000) for _ in range(4)])",
        "input=float32[3000]",
        "torch.randn(4, 3000)",
    ),
    "convolutions": (
        "make = lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), *[nn.Conv2d(64, 64, 3) for _ in range(6)])",
        "input=float32[3,160,160]",
        "torch.randn(4, 3, 160, 160)",
    ),
}


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("case", CASES)
def test_a_process_stays_below_what_is_asked_for(tmp_path, case, train):
    """And is asked for no more than 2.5 times its peak."""
    model, given, batch = CASES[case]
    path = tmp_path / "models.py"
    path.write_text(f"from torch import nn\n{model}\n")
    described = describe(f"{path}:make", Told(inputs=(parse_input(given),)))
    choice = Choice(devices=(DEVICES["cpu"],), batch_sizes=(4,), precisions=("float32",))
    asked = request(
        Check(name="c", title="", memory="training" if train else "forward"), described, choice, DEVICES["cpu"]
    )
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", PROGRAM.format(model=model, batch=batch, train=train)],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, used = os.wait4(pid, 0)
    assert status == 0
    peak = used.ru_maxrss / 1024
    assert peak <= asked.memory <= 2.5 * peak, (peak, asked.memory)
