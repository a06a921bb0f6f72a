"""Fusion: one number per frame out of three heads.

    frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - uncertainty_threshold)

The formula, its checks and its command-line flags live here and nowhere else.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from aha.errors import UserError


@dataclass(frozen=True)
class Fusion:
    """Weights of the heads (Aha, arXiv 2509.16421). The default is the relevance alone.

    Raises UserError for a weight that is not finite.
    """

    alpha: float = 0.0
    beta: float = 1.0
    epsilon: float = 0.0
    uncertainty_threshold: float = 0.0  # variance that costs nothing

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "epsilon", "uncertainty_threshold"):
            if not np.isfinite(getattr(self, name)):
                raise UserError(f"--{name} of the score must be a finite number, not {getattr(self, name)}.")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each head; a head of weight 0 need not be there."""
        return {"informative_score": self.alpha, "relevance_score": self.beta, "uncertainty_score": self.epsilon}

    def __call__(self, informative: np.ndarray | None, relevance: np.ndarray | None, uncertainty: np.ndarray | None) -> np.ndarray:
        """Heads [...] -> scores [...] in float64; a head of weight 0 may be None, and so may the uncertainty (counted as 0: sure)."""
        return fuse(informative, relevance, uncertainty, self.alpha, self.beta, self.epsilon, self.uncertainty_threshold)


RELEVANCE = Fusion()  # the relevance alone


def fuse(informative, relevance, uncertainty, alpha, beta, epsilon, uncertainty_threshold) -> np.ndarray:
    """The formula, for numbers or for arrays that broadcast (a grid search gives weights [K, 1] and heads [N])."""
    parts = [
        weight * np.asarray(head, dtype=np.float64)
        for weight, head in ((alpha, informative), (beta, relevance))
        if head is not None and np.any(weight)
    ]
    if uncertainty is not None and np.any(epsilon):
        parts.append(-epsilon * np.maximum(0.0, np.asarray(uncertainty, dtype=np.float64) - uncertainty_threshold))
    if parts:
        return sum(parts[1:], parts[0])
    given = next(head for head in (informative, relevance, uncertainty) if head is not None)
    return np.zeros(np.broadcast(np.asarray(alpha), np.asarray(given)).shape)


def add_fusion_flags(parser: argparse.ArgumentParser, default: Fusion | None = RELEVANCE) -> None:
    """`default` None: flags that were not given are None (the caller decides)."""
    group = parser.add_argument_group("frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - threshold)")
    for name, about in (
        ("alpha", "weight of the informative score"),
        ("beta", "weight of the relevance score"),
        ("epsilon", "weight of the uncertainty above the threshold"),
        ("uncertainty_threshold", "variance below which uncertainty costs nothing"),
    ):
        value = None if default is None else getattr(default, name)
        group.add_argument(
            f"--{name}", type=float, default=value, metavar="X", help=about + ("" if value is None else f" (default {value:g})")
        )


def fusion_of(args: argparse.Namespace) -> Fusion:
    """The Fusion of `add_fusion_flags`; flags that are None take the class's default. Raises UserError."""
    given = {name: getattr(args, name) for name in ("alpha", "beta", "epsilon", "uncertainty_threshold")}
    return Fusion(**{name: value for name, value in given.items() if value is not None})
