"""How strong the evidence is that a video shows what was asked for: its relevance against what the same model gives to other queries.

A model gives every video some curve, and the best 15% of noise make a reel too. Without labels there is one thing to hold it against: the
same frames, asked for other things. `strength` is how far the curve's best part stands above what those get: queries that have nothing to
do with the video, and the query with one word replaced (`variations`), which get as much where only half of what was asked for is there.

F frames, Q unrelated queries, V variations.
"""

from __future__ import annotations

import re
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
# Words of one kind, of which a thing is one and not another. The demo model knows the first of the first three rows.
KINDS = (
    ("red", "blue", "yellow", "green", "white", "purple", "orange", "black", "brown", "pink", "grey"),
    ("plain", "striped", "dotted", "checked"),
    ("sea", "street", "grass", "sand", "night", "forest", "kitchen", "stage", "desert"),
    ("man", "woman", "child"),
    ("men", "women", "children"),
    ("boy", "girl"),
    ("dog", "cat", "horse", "bird", "cow", "fish"),
    ("dogs", "cats", "horses", "birds", "cows"),
    ("car", "bicycle", "bus", "train", "boat", "plane"),
    ("guitar", "piano", "drums", "violin"),
    ("football", "tennis", "basketball", "hockey"),
    ("cake", "pizza", "soup", "bread", "salad"),
    ("running", "swimming", "dancing", "cooking", "sleeping"),
    ("runs", "swims", "dances", "cooks", "sleeps"),
    ("opens", "closes"),
    ("left", "right"),
)
OTHERS = 2  # words that one is replaced by
MOST_VARIATIONS = 4  # of a query: each is scored over the whole video
BEST_SHARE = 0.2  # of the frames
FLOOR_SHARE = 1 / 3  # of the unrelated queries
SPREADS = 1.5  # noise under the demo model has up to 0.09, own titles from 0.13
LEVEL = None  # the least strength of a clear moment: measured on each video, `level_of`
DEMO_LEVEL = 0.15  # of the demo model, whose unrelated queries are often shown: all 18 own titles of worlds 20 to 22 lie above


@dataclass(frozen=True)
class Evidence:
    """strength of one video and query; level: the least of a clear moment."""

    strength: float
    level: float

    @property
    def is_clear(self) -> bool:
        return self.strength > self.level

    def __str__(self) -> str:
        said = f"evidence {self.strength:+.2f} over other queries (a clear moment has more than {self.level:+.2f})"
        return said if self.is_clear else f"no clear moment for this query: {said}"


def variations(query: str) -> list[str]:
    """The query with one word of KINDS replaced by another of its kind; each word takes its turn. Empty where it has no such word."""
    words = {word.lower(): None for word in re.findall(r"\w+", query)}  # in order, each once
    others = [(word, [other for other in kind if other != word]) for word in words for kind in KINDS if word in kind]

    def replaced(word: str, other: str) -> str:
        return re.sub(
            rf"\b{word}\b", lambda found: other.capitalize() if found[0][0].isupper() else other, query, flags=re.IGNORECASE
        )  # fmt: skip

    return [replaced(word, kind[turn]) for turn in range(OTHERS) for word, kind in others if turn < len(kind)][:MOST_VARIATIONS]


def strength(relevance_F: np.ndarray, unrelated_QF: Sequence[np.ndarray], varied_VF: Sequence[np.ndarray] = ()) -> float:
    """How far the best fifth of the curve's frames stands above the floor, which at each frame is the mean of the third of the unrelated
    queries that get least there: one of them that the video shows after all does no harm. With variations it lies half-way between that and
    the variation that gets most: never lower, so that they can only weaken what is said.

    At most SPREADS times the distance from the curve's worst fifth to its best: where every frame gets the same, in a test picture or in
    noise, there is no moment, whatever the model takes it for.
    """
    lowest, count = max(1, round(FLOOR_SHARE * len(unrelated_QF))), max(1, round(BEST_SHARE * len(relevance_F)))
    floor_F = np.sort(unrelated_QF, axis=0)[:lowest].mean(axis=0)
    if len(varied_VF):
        floor_F = (floor_F + np.maximum(floor_F, np.max(varied_VF, axis=0))) / 2
    excess_F = np.sort(relevance_F - floor_F)
    ascending_F = np.sort(relevance_F)
    spread = ascending_F[-count:].mean() - ascending_F[:count].mean()
    return float(min(excess_F[-count:].mean(), SPREADS * spread))


def level_of(relevance_F: np.ndarray, unrelated_QF: Sequence[np.ndarray]) -> float:
    """The strength of the strongest unrelated query, each measured against all the others and the one asked for: what a clear moment has
    more of.

    A query that has as little to do with the video as those nine passes in at most one of ten videos, whatever the model's scale: of ten
    that are measured alike it would have to be the strongest. (A p-value of 1 / (Q + 1), as of a permutation test: exact without variations
    of the query, and with them, which only weaken it, no larger.)
    """
    return max(strength(one_F, [*unrelated_QF[:k], *unrelated_QF[k + 1 :], relevance_F]) for k, one_F in enumerate(unrelated_QF))
