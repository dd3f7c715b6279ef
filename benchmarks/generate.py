"""How well the memory of generated tests is asked for: `python benchmarks/generate.py [--quick]`.

Each of 20 models is given its tests, as `dtf farm generate` writes them; each file runs under pytest in a process of its
own, whose high-water mark is put beside the request. Configs of transformers are left out where it is not
installed. Nothing is downloaded: weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = """
import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        layers = [nn.Linear(width, width) for _ in range(depth)]
        self.body = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])

    def forward(self, x):
        return self.body(x)


class Convolutions(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.rest = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(depth)]
        )
        self.last = nn.Linear(width, 100)

    def forward(self, image):
        return self.last(self.rest(self.first(image)).mean((2, 3)))


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3, 64, 128, 256, 512]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))

    def forward(self, image):
        for layer in self.down:
            image = layer(image).relu()
        for layer in reversed(self.up):
            image = layer(image).relu()
        return image


class Reader(nn.Module):
    def __init__(self, words, width, depth):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True), depth)
        self.last = nn.Linear(width, words)

    def forward(self, ids):
        return self.last(self.body(self.table(ids)))


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.LSTM(64, width, 2, batch_first=True)
        self.last = nn.Linear(width, 10)

    def forward(self, steps):
        return self.last(self.body(steps)[0])


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [1, 64, 128, 256, 512]
        self.body = nn.Sequential(
            *[part for a, b in zip(widths, widths[1:]) for part in (nn.Conv1d(a, b, 9, 4, 4), nn.GELU())]
        )

    def forward(self, sound):
        return self.body(sound)


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(1_000_000, 64)
        self.last = nn.Linear(64, 1)

    def forward(self, ids):
        return self.last(self.table(ids))


def mlp_small(): return Mlp(1024, 8)
def mlp_wide(): return Mlp(4096, 6)
def mlp_large(): return Mlp(8192, 4)
def convolutions_small(): return Convolutions(64, 8)
def convolutions_wide(): return Convolutions(256, 12)
def convolutions_deep(): return Convolutions(128, 40)
def pyramid(): return Pyramid()
def reader_small(): return Reader(10_000, 256, 4)
def reader_base(): return Reader(30_000, 512, 8)
def reader_large(): return Reader(50_000, 1024, 12)
def recurrent(): return Recurrent(1024)
def recurrent_large(): return Recurrent(2560)
def waves(): return Waves()
def recommender(): return Recommender()
"""
TORCH = {
    "mlp_small": (), "mlp_wide": (), "mlp_large": (), "convolutions_small": ("image=float32[3,128,128]",),
    "convolutions_wide": ("image=float32[3,64,64]",), "convolutions_deep": ("image=float32[3,96,96]",),
    "pyramid": ("image=float32[3,256,256]",), "reader_small": ("ids=int64[128]<10000",), "reader_base": ("ids=int64[256]<30000",),
    "reader_large": ("ids=int64[64]<50000",), "recurrent": ("steps=float32[128,64]",),
    "recurrent_large": ("steps=float32[32,64]",), "waves": ("sound=float32[1,64000]",), "recommender": ("ids=int64[32]<1000000",),
}  # fmt: skip
CONFIGS = (
    "bert-base-uncased", "gpt2", "t5-small", "vit-base-patch16-224", "resnet-50", "clip-vit-base-patch32",
)  # fmt: skip
CHECKS = ("shapes", "training")


# Not `ru_maxrss`: in it the memory counts that the parent had when it started the process.
PROGRAM = """
import sys, pytest
code = pytest.main(sys.argv[2:])
with open("/proc/self/status") as status, open(sys.argv[1], "w") as told:
    told.write(next(line.split()[1] for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_of(test: str, folder: Path) -> tuple[float, int]:
    """Return MiB that a process of pytest has had at most, and its exit code."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MODEL_DEVICES": "cpu"}
    told = folder / "peak"
    command = [sys.executable, "-c", PROGRAM, str(told), test, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, check=False)
    return int(told.read_text()) / 1024, done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three models")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    from dtf_lightning.farm.generate.generate import generate_tests
    from dtf_lightning.farm.generate.sources.describing import is_installed

    models = [(f"models.py:{name}", inputs) for name, inputs in TORCH.items()]
    if is_installed("transformers"):
        models += [(name, ()) for name in CONFIGS]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        Path("models.py").write_text(MODELS)
        for given, inputs in models[:3] if arguments.quick else models:
            made = generate_tests(given, ["cpu"], [1, 4], checks=CHECKS, inputs=inputs)
            for task in made.tasks:
                peak, code = peak_of(task.command[-1], folder)
                rows.append((made.model.name, task.check, task.request.memory, peak, code))
                print(
                    f"{rows[-1][0]:24} {rows[-1][1]:12} asked {rows[-1][2]:6} peak {peak:8.0f} MiB {code or ''}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))
    by_model: dict[str, list[tuple[int, float]]] = {}
    for model, _, asked, peak, _ in rows:
        by_model.setdefault(model, []).append((asked, peak))
    covered = sum(all(asked >= peak for asked, peak in pairs) for pairs in by_model.values())
    print(f"models all of whose tests are covered: {covered} of {len(by_model)}")
    print(f"tests that are covered: {sum(row[2] >= row[3] for row in rows)} of {len(rows)}")
    print(f"asked for beside the peak, median: {statistics.median(row[2] / row[3] for row in rows):.2f}")


if __name__ == "__main__":
    main()
