"""`hash_tensors` hashes tensors where they lie, fast enough to be run in the midst of training.

A large tensor's bytes are summed in blocks of 512 as 64-bit words, modulo 2^64, and the sums are weighted by the blocks'
places: it is read once, at the speed of memory. Any one changed bit changes the hash, as do blocks that change places; words
that change places within a block do not. Small tensors, of which there are many, are fetched from their device together
and hashed by CRC-32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

SMALL = 1 << 16
"""Size in bytes of the smallest tensor that is hashed where it lies."""
_BLOCK = 64
"""Words in a block."""
_FACTOR = 0x5851F42D4C957F2D
"""An odd number, from a linear congruential generator (Knuth's MMIX): a block's weight is `place * factor + 1`."""


@torch.no_grad()
def hash_tensors(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Return a signed 64-bit number for each tensor, which depends on its bytes, not on its shape, dtype or device.

    Synchronises with each device twice at most, however many tensors there are.
    """
    hashes: list[int] = []
    # By device, each with its place in the answer: (bytes,)
    small: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    large: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for index, tensor in enumerate(tensors):
        hashes.append(0)
        if tensor.nbytes >= SMALL:
            large.setdefault(tensor.device, []).append((index, _bytes_of(tensor)))
        elif tensor.device.type == "cpu" and tensor.dtype in _IN_NUMPY and tensor.is_contiguous():
            hashes[index] = zlib.crc32(tensor.detach().numpy().data)
        else:
            small.setdefault(tensor.device, []).append((index, _bytes_of(tensor)))
    for pieces in small.values():
        fetched = torch.cat([piece for _, piece in pieces]).cpu()
        parts = torch.split(fetched, [piece.numel() for _, piece in pieces])
        for (index, _), part in zip(pieces, parts, strict=True):
            hashes[index] = zlib.crc32(part.numpy().data)
    for pieces in large.values():
        values = torch.stack([_sum(content) for _, content in pieces]).tolist()
        for (index, _), value in zip(pieces, values, strict=True):
            hashes[index] = value
    return hashes


_IN_NUMPY = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool}
"""The common dtypes that numpy has, too; others are viewed as bytes first."""


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes in their order, of shape (bytes,), without a copy where it is contiguous."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    values = tensor.detach().contiguous().view(-1)
    if values.stride(0) != 1:  # of no element or one, whose stride may be any
        values = values.clone(memory_format=torch.contiguous_format)
    return values.view(torch.uint8)


def _sum(content: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of a large tensor's bytes, of no dimension, int64, on its device."""
    if content.storage_offset() % 8:
        content = content.clone()  # a view as int64 begins at a multiple of 8 bytes
    num_blocks = content.numel() // (8 * _BLOCK)
    # (blocks,)
    sums = content[: num_blocks * 8 * _BLOCK].view(torch.int64).view(num_blocks, _BLOCK).sum(1)
    # The last bytes fill no block of their own, so that the last one reaches back into the one before.
    last = content[-8 * _BLOCK :].clone().view(torch.int64).sum()
    return sums.mul_(_weights(content.device, num_blocks)).sum() + last * _FACTOR


_known_weights: dict[torch.device, torch.Tensor] = {}


def _weights(device: torch.device, num_blocks: int) -> torch.Tensor:
    """Return the blocks' weights, of shape (num_blocks,); they are made once, for the largest tensor."""
    known = _known_weights.get(device)
    if known is None or len(known) < num_blocks:
        known = torch.arange(1, num_blocks + 1, device=device).mul_(_FACTOR).add_(1)
        _known_weights[device] = known
    return known[:num_blocks]
