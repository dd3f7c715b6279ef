"""AdaScale: a learning rate gain measured from the variance of the workers' gradients.

Johnson, Agrawal, Gu, Guestrin 2020, "AdaScale SGD" (https://arxiv.org/abs/2007.05105), equations 3 to 6: with s2 the
variance of one batch's gradient, m2 the squared norm of its expectation and S times the batch, the gain
`r = (s2 + m2) / (s2 / S + m2)` lies between 1 and S: S where noise dominates, 1 where it does not. Here one batch is
the reference world's, and S the world size over the reference world size, which may also be below 1.

Not taken over: the paper steps the schedule r times per step. Here Lightning steps the user's scheduler as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class GainEstimate:
    """The moving averages of the gradient's variance and squared norm, which are the same on all ranks."""

    variance: float = 0.0
    """The variance of one worker's micro-batch gradient, summed over the parameters."""
    norm: float = 0.0
    """The squared norm of the expected gradient."""
    weight: float = 0.0
    """The weight of all observations in the averages; 0: there are none yet."""

    def observe(self, *, mean_square: float, square_of_mean: float, num_gradients: int) -> None:
        """Take one step's gradients into account; fewer than two gradients say nothing about variance.

        Args:
            mean_square: the mean of the squared norms of the workers' micro-batch gradients.
            square_of_mean: the squared norm of the mean of these gradients.
            num_gradients: the number of these gradients.
        """
        if num_gradients < 2:
            return
        variance = max(0.0, num_gradients / (num_gradients - 1) * (mean_square - square_of_mean))
        norm = max(0.0, square_of_mean - variance / num_gradients)
        keep = max(0.0, 1 - num_gradients / 1000)  # the paper's appendix B.3
        self.variance = keep * self.variance + (1 - keep) * variance
        self.norm = keep * self.norm + (1 - keep) * norm
        self.weight = keep * self.weight + (1 - keep)

    def gain(self, scale: float, reference_gradients: int) -> float:
        """Return the learning rate's factor for `scale` times the reference batch.

        `reference_gradients` is the number of gradients that the reference batch averages.
        """
        if scale == 1.0 or self.weight == 0.0:
            return 1.0
        variance, norm = self.variance / self.weight / reference_gradients, self.norm / self.weight
        if variance + norm <= 0.0:
            return 1.0
        return (variance + norm) / (variance / scale + norm)

    def state_dict(self) -> dict[str, Any]:
        return {"variance": self.variance, "norm": self.norm, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.variance, self.norm, self.weight = state["variance"], state["norm"], state["weight"]
