"""Fusion: one number per frame out of three heads.

    frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - uncertainty_threshold)

The formula, its checks and its command-line flags live here and nowhere else.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.core.files import read_json
from aha.errors import UserError

NAMES = ("alpha", "beta", "epsilon", "uncertainty_threshold")  # of the weights, and of their flags


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
        for name in NAMES:
            if not np.isfinite(getattr(self, name)):
                raise UserError(f"--{name} of the score must be a finite number, not {getattr(self, name)}.")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each head; a head of weight 0 need not be there."""
        return {"informative_score": self.alpha, "relevance_score": self.beta, "uncertainty_score": self.epsilon}

    @property
    def flags(self) -> str:
        """The four as command-line flags."""
        return " ".join(f"--{name} {getattr(self, name)}" for name in NAMES)

    def __call__(
        self, informative: np.ndarray | float | None, relevance: np.ndarray | float | None, uncertainty: np.ndarray | float | None
    ) -> np.ndarray:
        """Heads [...] or numbers -> scores [...] in float64; one of weight 0 may be None, and so may the uncertainty (then 0: sure)."""
        return fuse(informative, relevance, uncertainty, self.alpha, self.beta, self.epsilon, self.uncertainty_threshold)


RELEVANCE = Fusion()  # the relevance alone
# The weights of the Aha paper's TVSum results: table 11 (the negative epsilon rewards uncertainty), and those tuned on TVSum.
ZERO_SHOT = Fusion(0.7, 1.0, -2.9, 0.3)
ADAPTED = Fusion(0.667, 1.357, 3.571, 0.077)


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


def add_fusion_flags(parser: argparse.ArgumentParser, default: Fusion | None = RELEVANCE, loads_model: bool = False) -> None:
    """Flags that were not given are None; `fusion_of` fills them. `default` None: the caller decides, and the help names no default.
    loads_model: the command's --weights are the model's, so that it is no other name of --fusion there."""
    group = parser.add_argument_group("frame score = alpha * informative + beta * relevance - epsilon * max(0, uncertainty - threshold)")
    for name, about in zip(
        NAMES,
        (
            "weight of the informative score",
            "weight of the relevance score",
            "weight of the uncertainty above the threshold",
            "variance below which uncertainty costs nothing",
        ),
    ):
        shown = "" if default is None else f" (default {getattr(default, name):g})"
        group.add_argument(f"--{name}", type=float, metavar="X", help=about + shown)
    names = ["--fusion"] if loads_model else ["--fusion", "--weights"]
    group.add_argument(
        *names, dest="fusion", metavar="JSON", help="take these four from a result of the grid search; flags that are given win"
    )


def fusion_of(args: argparse.Namespace) -> Fusion:
    """The Fusion of `add_fusion_flags`: flags that are None take the value of --fusion, else the class's default. Raises UserError."""
    return Fusion(**given_weights(args))


def given_weights(args: argparse.Namespace) -> dict[str, float]:
    """What the flags say, the file of --fusion included."""
    given = read_weights(args.fusion) if args.fusion else {}
    return given | {name: getattr(args, name) for name in NAMES if getattr(args, name) is not None}


def read_weights(path: str | Path) -> dict[str, float]:
    """The weights in a grid search's result ("best"), or in a JSON object of them. Raises UserError."""
    document = read_json(path, "weights file")
    best = document.get("best", document) if isinstance(document, dict) else None
    if not isinstance(best, dict) or not all(type(best.get(name)) in (int, float) for name in NAMES):
        raise UserError(f"weights file {path} holds no numbers {', '.join(NAMES)}; `aha eval grid_search --output FILE` writes one.")
    return {name: float(best[name]) for name in NAMES}
