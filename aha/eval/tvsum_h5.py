"""TVSum with the community's h5 file and splits: what aha.eval.tvsum adds for `--h5` and `--splits`.

The annotations are used where they and the h5 speak of the same videos (as many frames, in the order of the numbers): then every protocol
is computed, under the annotations' ids. Without lengths in the annotations, the protocols of the h5 and `corr_every15`; where the shipped
annotations do not fit (another data set in TVSum's form), those of the h5 alone; then videos are called video_1, video_2, ...
With an h5, corr_every15 follows CSTA and CA-SUM to the letter: frames before the first sample count 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aha.core.fusion import RELEVANCE, Fusion
from aha.core.prediction import keyed, read_predictions
from aha.errors import UserError
from aha.eval.annotations import TVSumVideo, find_tvsum, names_of, read_tvsum
from aha.eval.command import Benchmark, select, select_protocols
from aha.eval.community import H5Video, read_h5
from aha.eval.grids import place
from aha.eval.h5_numbers import KEYSHOTS_TVSUM, POR, H5Truth, as_released, read_truth, splits_of, tests_of, with_splits
from aha.eval.published import Counted
from aha.eval.tvsum import Selection, TVSum, load_annotated
from aha.eval.tvsum_protocols import PROTOCOLS
from aha.results import table
from aha.results.layout import Protocol
from aha.results.tree import Column, Scored, undefined_in

if TYPE_CHECKING:
    from aha.results.figures import Curve

EVERY15 = next(protocol for protocol in PROTOCOLS if protocol.name == "corr_every15")


@dataclass(kw_only=True)
class Annotated(Benchmark):
    """TVSum's own benchmark with the numbers of an h5 file and of splits beside it."""

    base: TVSum
    truth: H5Truth | None
    tests: Sequence[Sequence[str]]

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        scored = self.base.score(path, fusion, trained_on, progress)
        columns = scored.columns
        if self.tests:
            columns = [one for c in columns for one in (with_splits([c], self.tests) if c.subset in ("", "all50") else [c])]
        if self.truth is not None:
            samples = {i: one for i, (one, _) in self.base.samples(path, fusion).items() if i not in scored.skipped}
            names = names_of(self.base.known)
            theirs = self.truth.columns(samples, lambda one: place(one, self.base.known[names[one.video_id]]))
            kept = {protocol.name for protocol in self.protocols}
            theirs = [column for column in theirs if column.protocol in kept]
            replaced = {column.protocol for column in theirs}
            columns = [column for column in columns if column.protocol not in replaced] + theirs
        return replace(scored, protocols=self.protocols, columns=columns, undefined=undefined_in(columns))

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        rows = self.base.rows(scored, runs, progress)
        if self.truth is not None and "keyshots_h5" in {protocol.name for protocol in self.protocols}:
            for row, columns in self.truth.rows([i for i in self.chosen if scored is None or i not in scored.skipped], runs).items():
                rows[row] = [*rows.get(row, []), *columns]
        return rows

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        return self.base.curves(path, fusion, wanted)

    def sets(self, scored: Scored) -> dict[str, Counted]:
        return self.base.sets(scored)

    def remarks(self, scored: Scored | None) -> list[str]:
        return self.base.remarks(scored)


@dataclass(kw_only=True)
class H5Only(Benchmark):
    """The h5 file alone, with annotators' frame scores where annotations without lengths were given."""

    truth: H5Truth
    why: str

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        found = dict(keyed(map(as_released, read_predictions(path)), lambda prediction: prediction.video_id))
        if unknown := [i for i in found if i not in self.truth.ids]:
            raise UserError(
                f"{path}: video {table.named_list(unknown)} not in {self.truth.path}; its videos are called video_1, video_2, ..."
            )
        samples = {i: found[i].samples(fusion) for i in self.chosen if i in found}
        if not samples:
            raise UserError(f"{path} has no prediction for any of the {len(self.chosen)} selected videos; check --video_ids, --limit.")
        kept = {protocol.name for protocol in self.protocols}
        columns = [column for column in self.truth.columns(samples) if column.protocol in kept]
        constant = [i for i, one in samples.items() if (one.scores == one.scores[0]).all()]
        seen = [i for i in samples if found[i].trained_on or i in trained_on]
        skipped = {i: "no prediction" for i in self.chosen if i not in samples}
        return Scored(str(path), self.protocols, columns, len(samples), skipped, constant, seen, undefined_in(columns))

    def rows(self, scored: Scored | None, runs: int, progress: bool) -> dict[str, list[Column]]:
        return self.truth.rows([i for i in self.chosen if scored is None or i not in scored.skipped], runs)

    def remarks(self, scored: Scored | None) -> list[str]:
        return [self.why]


def load_h5(selected: Selection, h5: str | Path | None, splits: str | Path | None) -> Benchmark:
    """The benchmark of --h5 and --splits. Raises UserError where given annotations and the h5 do not fit."""
    if h5 is None:  # splits of the annotated videos
        base = load_annotated(selected)
        numbered = {f"video_{number}": i for number, i in enumerate(base.known, 1)}
        return _annotated(base, base.protocols, None, tests_of(splits_of(splits), numbered, base.annotations))
    videos = read_h5(h5)
    path = find_tvsum(selected.annotations)
    known = read_tvsum(path, selected.info, lengths=False)
    unlike = differs(known, videos)
    if selected.annotations is not None and unlike:
        raise UserError(f"{path} and {h5} are not of the same videos: {unlike}; leave --annotations out for the h5's numbers alone.")
    without_lengths = [i for i, video in known.items() if math.isnan(video.length_s)]
    if not unlike and not without_lengths:
        own = [protocol.name for protocol in PROTOCOLS if protocol.name != "f1_shots" or selected.shots is not None]
        of_h5 = [KEYSHOTS_TVSUM, *([POR] if splits is not None else [])]
        computed = select_protocols([p for p in PROTOCOLS if p.name in own] + of_h5, selected.protocols)
        names = [protocol.name for protocol in computed if protocol.name in own]
        base = load_annotated(replace(selected, protocols=names or [EVERY15.name]))
        ids = dict(zip(videos, known))
        annotators = {i: video.user_scores for i, video in known.items()}
        truth = read_truth(h5, ids, videos, "f_avg", splits, annotators=annotators)
        return _annotated(base, computed, truth, truth.tests)
    if selected.fold is not None or selected.shots is not None:
        raise UserError("--fold and --shots need annotations that fit the h5 file and know the videos' lengths; give --info.")
    if unlike:
        annotators, why = {}, f"the h5's numbers alone: the annotations {path} are of other videos ({unlike})"
    else:
        annotators = {name: video.user_scores for name, video in zip(videos, known.values())}
        why = f"without --info: the length of {without_lengths[0]} is not known, so protocols that count in seconds are left out"
    of_h5 = [KEYSHOTS_TVSUM, *([EVERY15] if annotators else []), *([POR] if splits is not None else [])]
    chosen = select(list(videos), str(h5), selected.video_ids, selected.limit)
    truth = read_truth(h5, {name: name for name in videos}, videos, "f_avg", splits, annotators=annotators)
    return H5Only(
        annotations=str(path) if annotators else str(h5),
        chosen=chosen,
        protocols=select_protocols(of_h5, selected.protocols),
        truth=truth,
        why=why,
    )


def _annotated(base: TVSum, protocols: Sequence[Protocol], truth: H5Truth | None, tests: Sequence[Sequence[str]]) -> Annotated:
    return Annotated(
        annotations=base.annotations, chosen=base.chosen, protocols=protocols, categories=base.categories, base=base, truth=truth,
        tests=tests,
    )  # fmt: skip


def differs(known: Mapping[str, TVSumVideo], videos: Mapping[str, H5Video]) -> str:
    """What the annotations (in their order) and the h5 (in the order of its numbers) do not agree on; "" where they do."""
    if len(known) != len(videos):
        return f"{len(known)} annotated videos, {len(videos)} in the h5"
    for name, (video_id, video) in zip(videos, known.items()):
        if videos[name].truth.n_frames != video.n_frames:
            return f"{name} has {videos[name].truth.n_frames} frames, {video_id} has {video.n_frames}"
    return ""
