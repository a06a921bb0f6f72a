"""Prompt studies: what is asked of the model about a video, in four styles.

    specific    the benchmark's own query (TVSum: the video's title)
    ambiguous   a few words that fit the whole category: "Something about vehicles"
    unrelated   the query of another video, of another category where there is one
    none        nothing is asked

The Aha paper's ambiguous and unrelated titles were written for each video by hand; give such titles as `--query_map FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aha.core.folds import seeded
from aha.errors import UserError

STYLES = ("specific", "ambiguous", "unrelated", "none")
ANYTHING = "Something worth watching"
# TVSum's ten categories (Song et al., CVPR 2015), each blurred to what it shares with several others.
TVSUM_AMBIGUOUS = {
    "VT": "Something about vehicles",
    "VU": "Something about vehicles",
    "GA": "Something about animals",
    "MS": "Something about food",
    "PK": "People moving around in a city",
    "PR": "Many people outdoors",
    "FM": "Many people in one place",
    "BK": "Something about nature",
    "BT": "Something on wheels",
    "DS": "Something about animals",
}

Query = tuple[float, str]  # (second, words)


def restyle(
    queries: Mapping[str, Sequence[Query]], style: str, categories: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, tuple[Query, ...]]:
    """The queries of all videos in a style: {video: ((second, words), ...)}; times stay as they are.

    categories: {video: category}, where the benchmark has them. Unrelated queries are a permutation of the given ones, the same for the
    same videos and seed, in which no video keeps its own. Raises UserError for an unknown style and where nothing unrelated is there.
    """
    if style not in STYLES:
        raise UserError(f"--prompt_style {style} is none of {', '.join(STYLES)}.")
    categories = categories or {}
    if style == "specific":
        return {video: tuple(asked) for video, asked in queries.items()}
    if style == "none":
        return dict.fromkeys(queries, ())
    if style == "ambiguous":
        words = {video: TVSUM_AMBIGUOUS.get(categories.get(video, ""), ANYTHING) for video in queries}
        return {video: tuple((time, words[video]) for time, _ in asked) for video, asked in queries.items()}
    donors = unrelated(queries, categories, seed)
    return {
        video: tuple((time, queries[donors[video]][min(i, len(queries[donors[video]]) - 1)][1]) for i, (time, _) in enumerate(asked))
        for video, asked in queries.items()
    }


def unrelated(queries: Mapping[str, Sequence[Query]], categories: Mapping[str, str], seed: int) -> dict[str, str]:
    """{video: the video whose query it gets}: videos in a seeded order, sorted by category, turned by the size of the largest category."""
    asked = [video for video, turns in queries.items() if turns]
    order = sorted(asked, key=lambda video: (categories.get(video, ""), seeded(seed, video)))
    sizes = [sum(categories.get(video, "") == category for video in asked) for category in {categories.get(video, "") for video in asked}]
    step = max(sizes, default=0) % max(1, len(order)) or 1
    donors = {video: order[(i + step) % len(order)] for i, video in enumerate(order)}
    for video, donor in donors.items():
        if [words for _, words in queries[video]] == [words for _, words in queries[donor]]:
            raise UserError(
                f"--prompt_style unrelated: video {video} has no other query to borrow; score more videos, or give --query_map."
            )
    return donors | {video: video for video in queries if not queries[video]}
