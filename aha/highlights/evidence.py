"""How strong the evidence is that a video shows what was asked for: the curve against what the same model gives to unrelated queries.

A model gives every video some curve, and the best 15% of noise make a reel too. Without labels there is one thing to hold it against: the
same frames, asked for other things. `strength` is how far the curve's best part stands above what those get.

F frames, Q unrelated queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Wishes from far apart, so rare that hardly a video shows one of them. Nine: see `level_of`.
UNRELATED = (
    "a beekeeper opens a hive",
    "penguins dive from the ice",
    "a potter shapes a bowl of clay",
    "someone shears a sheep",
    "a rocket lifts off",
    "the chess player moves the queen",
    "a welder joins two steel beams",
    "hands play the harp",
    "a glacier breaks into the sea",
)
# The demo model knows no words but those of its world.
DEMO_UNRELATED = (
    "All the red things in one video",
    "All the blue things in one video",
    "A show of everything plain",
    "A show of everything dotted",
    "Back to the sea",
    "Back to the street",
)
BEST_SHARE = 0.2  # of the frames
FLOOR_SHARE = 1 / 3  # of the unrelated queries
LEVEL = None  # the least strength of a clear moment: measured on each video, `level_of`
DEMO_LEVEL = 0.25  # of the demo model, whose unrelated queries are often shown: 1 of 46 own titles of five worlds lies below


@dataclass(frozen=True)
class Evidence:
    """strength of one video and query; level: the least of a clear moment."""

    strength: float
    level: float

    @property
    def is_clear(self) -> bool:
        return self.strength > self.level

    def __str__(self) -> str:
        said = f"evidence {self.strength:+.2f} over unrelated queries (a clear moment has more than {self.level:+.2f})"
        return said if self.is_clear else f"no clear moment for this query: {said}"


def strength(fused_F: np.ndarray, unrelated_QF: Sequence[np.ndarray]) -> float:
    """How far the best fifth of the curve's frames stands above the floor, which at each frame is the mean of the third of the unrelated
    queries that get least there: one of them that the video shows after all does no harm.

    At most twice the distance from the curve's worst fifth to its best: where every frame gets the same, in a test picture or in noise,
    there is no moment, whatever the model takes it for.
    """
    lowest, count = max(1, round(FLOOR_SHARE * len(unrelated_QF))), max(1, round(BEST_SHARE * len(fused_F)))
    excess_F = np.sort(fused_F - np.sort(unrelated_QF, axis=0)[:lowest].mean(axis=0))
    ascending_F = np.sort(fused_F)
    spread = ascending_F[-count:].mean() - ascending_F[:count].mean()
    return float(min(excess_F[-count:].mean(), 2 * spread))


def level_of(fused_F: np.ndarray, unrelated_QF: Sequence[np.ndarray]) -> float:
    """The strength of the strongest unrelated query, each measured against all the others and the one asked for: what a clear moment has
    more of.

    A query that has as little to do with the video as those nine passes in at most one of ten videos, whatever the model's scale: of ten
    that are measured alike it would have to be the strongest. (An exact p-value of 1 / (Q + 1), as of a permutation test.)
    """
    return max(strength(one_F, [*unrelated_QF[:k], *unrelated_QF[k + 1 :], fused_F]) for k, one_F in enumerate(unrelated_QF))
