"""Seeds random numbers from where training stands, so that nothing depends on what was drawn before.

Rules that this file guards:

* the seed of a place is a hash of (seed, epoch, step, micro-batch, rank): the same place gives the same numbers,
  whatever rescales, retries, callbacks or validations drew in between;
* places do not share numbers: the hash is 64 bits wide, not a sum in which step 1 of rank 0 is step 0 of rank 1.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_of(seed: int, *place: int) -> int:
    """Return a seed below 2**63 for a place such as (epoch, step, micro-batch, rank)."""
    text = ",".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_process(seed: int) -> None:
    """Seed torch (all devices), numpy's and Python's global generators of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # augmentations draw from the legacy generator
    random.seed(seed)


def loader_generator(seed: int) -> torch.Generator:
    """Return a generator for `DataLoader.generator`, from which the loader seeds its workers."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator
