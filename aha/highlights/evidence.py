"""How strong the evidence is that a video shows what was asked for: the curve against what the same model gives to unrelated queries.

A model gives every video some curve, and the best 15% of noise make a reel too. Without labels there is one thing to hold it against: the
same frames, asked for other things. `strength` is how far the curve's best part stands above theirs.

F frames, Q unrelated queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Everyday wishes from far apart: a video that shows one of them hardly shows the others, and the mean over them is what counts.
UNRELATED = (
    "how to repair a bicycle tyre",
    "a dog runs after a ball",
    "someone cooks pasta",
    "a car drives through the city",
    "the goal of a football match",
    "hands play the piano",
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
BEST_SHARE = 0.15  # of the frames: as much as a reel shows
LEVEL = 0.0  # the least strength of a clear moment: the best part stands above what anything else is given
DEMO_LEVEL = 0.16  # of the demo model: 1 of 20 own titles lies below it on demo worlds of seeds 101 to 103


@dataclass(frozen=True)
class Evidence:
    """strength of one video and query; level: the least of a clear moment for this model."""

    strength: float
    level: float

    @property
    def is_clear(self) -> bool:
        return self.strength >= self.level

    def __str__(self) -> str:
        said = f"evidence {self.strength:+.2f} over unrelated queries (a clear moment has {self.level:+.2f} or more)"
        return said if self.is_clear else f"no clear moment for this query: {said}"


def strength(fused_F: np.ndarray, unrelated_QF: Sequence[np.ndarray]) -> float:
    """Mean of the best 15% of the curve's excess over the mean curve of the unrelated queries."""
    excess_F = fused_F - np.mean(unrelated_QF, axis=0)
    count = max(1, round(BEST_SHARE * len(excess_F)))
    return float(np.sort(excess_F)[-count:].mean())
