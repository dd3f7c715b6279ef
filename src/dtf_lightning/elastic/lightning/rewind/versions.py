"""What Lightning's minor versions differ in, as far as it concerns us: 2.6 is what we are written against, 2.5 works too."""

from __future__ import annotations

from lightning.pytorch import callbacks

WEIGHT_AVERAGING: tuple[type[callbacks.Callback], ...] = (
    (callbacks.WeightAveraging,) if hasattr(callbacks, "WeightAveraging") else ()
)
"""The class that swaps other weights in, for `isinstance`; Lightning 2.5 has none."""
