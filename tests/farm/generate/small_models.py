"""Small models for which tests are written."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn


class TinyNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return {"logits": self.head(self.body(x)), "norm": x.norm(dim=1)}


class TinyModule(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class NeedsSize(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Linear(size, size)


class TakesTwo(nn.Module):
    def forward(self, left, right):
        return left @ right


class Picture(nn.Module):
    """Takes pictures of 8 x 8 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 10))

    def forward(self, image):
        return self.net(image)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, ids):
        return self.layer(self.table(ids))


number = 3


def broken():
    raise RuntimeError("no model today")
