"""From a score track to highlights in one call, and the files that `aha highlights` writes.

    result = find_highlights(track, "how to repair a tyre", Options(budget=0.15), video_fps=30)
    write_result(result, "tyre.mp4", "outputs/tyre")

F frames.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aha.core.files import finish_output, write_json, write_text
from aha.core.fusion import Fusion
from aha.core.heads import SCORES
from aha.core.prediction import Prediction, check_covered, score_rows, write_predictions
from aha.errors import UserError
from aha.highlights.chapters import chapters_vtt, title_of
from aha.highlights.evidence import Evidence, level_of, strength
from aha.highlights.offline import segment_kernel, segment_uniform
from aha.highlights.online import OnlineSettings, segment_online
from aha.highlights.ranking import ranked_highlights, smooth_causal, smooth_centred
from aha.highlights.reel import Clip, ReelInfo, write_reel
from aha.highlights.summary import summarise_budget, summarise_threshold, summarise_top
from aha.highlights.thumbnails import stills_of, write_poster
from aha.highlights.timeline import Highlight, ScoreTrack, Segment
from aha.highlights.timelines import ADAPTERS, write_timelines
from aha.video.packet_index import video_index

FILES = (
    "scores.json", "segments.json", "highlights.json", "timeline.png", "poster.jpg", "reel.mp4", "chapters.vtt", "report.html",
    "summary.json",
)  # fmt: skip
CURVE_VIDEO = "curve.mp4"  # where it is asked for
RULES = ("budget", "top", "min_score")  # what may say how many moments there are
BUDGET = 0.15  # share of the video that is chosen where none of them is given, as in TVSum


@dataclass(frozen=True)
class Options:
    """How highlights are made from scores. Exactly one of budget, top and min_score says how many."""

    fusion: Fusion = field(default_factory=Fusion)
    smooth_frames: int = 3  # window of the smoothing in scored frames; 1 = none
    smoothing: Literal["centred", "causal"] = "centred"  # centred looks ahead by half the window
    segmentation: Literal["online", "kernel", "uniform"] = "online"
    online: OnlineSettings = field(default_factory=OnlineSettings)
    shot_seconds: float = 2.0  # of uniform shots
    budget: float | None = None  # share of the video, 0..1
    top: int | None = None  # number of moments
    min_score: float | None = None  # all segments of at least this mean score
    force: bool = False  # also choose moments where the evidence is weak

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in RULES) > 1:
            raise UserError("give one of budget, top and min_score, not several.")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(f"budget is the share of the video to show, above 0 and at most 1, not {self.budget}.")
        if self.top is not None and self.top < 1:
            raise UserError(f"top is a number of moments, at least 1, not {self.top}.")
        if self.min_score is not None and not np.isfinite(self.min_score):
            raise UserError(f"min_score must be a finite number, not {self.min_score}.")
        if self.smooth_frames < 1 or self.smooth_frames % 2 == 0:
            raise UserError(f"smooth_frames is an odd number of frames, at least 1, not {self.smooth_frames}.")
        if not self.shot_seconds > 0:
            raise UserError(f"shot_seconds must be above 0, not {self.shot_seconds}.")


@dataclass(frozen=True)
class Result:
    """What was found in one video for one query. fused_F: smoothed frame score [F]."""

    query: str
    track: ScoreTrack
    fused_F: np.ndarray
    segments: list[Segment]
    highlights: list[Highlight]  # best first
    video_fps: float
    said: list[dict[str, Any]] = field(default_factory=list)  # {"role": "assistant", "time", "content"}
    evidence: Evidence | None = None  # None: not measured
    chosen_by: dict[str, Any] = field(default_factory=dict)  # the rule, its value, and whether it was forced

    @property
    def reel_seconds(self) -> float:
        return sum(h.end - h.start for h in self.highlights)

    def with_sentences(self, sentences: Sequence[str | None]) -> Result:
        """A copy in which the model says something about each highlight, in their order."""
        return replace(self, highlights=[replace(h, sentence=s) for h, s in zip(self.highlights, sentences, strict=True)])


def score_curve(track: ScoreTrack, options: Options) -> np.ndarray:
    """Fused and smoothed score [F]."""
    fused_F = options.fusion(track.informative_F, track.relevance_F, track.uncertainty_F)
    if options.smooth_frames == 1:
        return fused_F
    smooth = smooth_causal if options.smoothing == "causal" else smooth_centred
    return smooth(fused_F, options.smooth_frames, 1)


def evidence_of(track: ScoreTrack, unrelated: Sequence[ScoreTrack], varied: Sequence[ScoreTrack], level: float | None) -> Evidence:
    """How clearly the video answers the query of `track`.

    unrelated, varied: the same video scored for queries that have nothing to do with it, and for the query's `variations`. level: the least
    strength of a clear moment; None = the level that the unrelated queries give (aha.highlights.evidence.level_of).

    Of the relevance, smoothed as by default, whatever the weights of the score: those say which moments are best, and not whether the video
    shows what was asked for; and a level that was fixed holds on the scale that it was fixed on.
    """
    relevance_F, unrelated_QF, varied_VF = (
        score_curve(track, Options()),
        *([score_curve(other, Options()) for other in others] for others in (unrelated, varied)),
    )
    least = level_of(relevance_F, unrelated_QF) if level is None else level
    return Evidence(strength(relevance_F, unrelated_QF, varied_VF), least)


def find_highlights(
    track: ScoreTrack, query: str, options: Options | None = None, video_fps: float = 30.0, evidence: Evidence | None = None
) -> Result:  # fmt: skip
    """Fuse, smooth, segment, choose and rank. Without budget, top or min_score the budget is BUDGET.

    evidence: of this video and query, `evidence_of`. Where it is weak nothing is chosen, but with options.force.
    """
    options = options or Options()
    fused_F = score_curve(track, options)
    if options.segmentation == "online":
        segments = segment_online(track, options.online)
    elif options.segmentation == "kernel":
        segments = segment_kernel(track)
    else:
        segments = segment_uniform(track, options.shot_seconds)
    weak = evidence is not None and not evidence.is_clear
    rule = next((name for name in RULES if getattr(options, name) is not None), "budget")
    value: Any = BUDGET if getattr(options, rule) is None else getattr(options, rule)
    if weak and not options.force:
        chosen = []
    elif rule == "top":
        chosen = summarise_top(track, fused_F, segments, value)
    elif rule == "min_score":
        chosen = summarise_threshold(track, fused_F, segments, value)
    else:
        chosen = summarise_budget(track, fused_F, segments, value, video_fps)
    chosen_by = {"rule": rule, "value": value, "forced": weak and options.force}
    ranked = ranked_highlights(track, fused_F, chosen)
    return Result(query, track, fused_F, segments, ranked, video_fps, evidence=evidence, chosen_by=chosen_by)


def prediction(result: Result, video_id: str, frame_fps: float) -> Prediction:
    """What scores.json holds."""
    track = result.track
    rows = score_rows(track.times_F, track.informative_F, track.relevance_F, track.uncertainty_F)
    extra: dict[str, Any] = {} if result.evidence is None else {"evidence": asdict(result.evidence)}
    return Prediction.of_scores(video_id, result.query, track.duration, frame_fps, track.frames_F, rows, result.said, **extra)


def read_track(prediction: Prediction, duration: float, frames: int | None = None) -> ScoreTrack:
    """A prediction as a track, without picture features, which no prediction file holds. duration, frames: of the video, where it is there.
    Raises UserError where it lacks times or heads, and for scores of another video or of a part of it."""
    samples = prediction.samples(Fusion())
    if samples.times is None or samples.frames is None:
        raise UserError(f"{prediction.name} does not say when each score was read (time, true_frames_list); it was not written by aha.")
    check_covered(samples.times, duration, prediction.name)
    if frames is not None and samples.frames[-1] >= frames:
        number = samples.frames[-1]
        raise UserError(f"{prediction.name}: frame number {number} is beyond the video's {frames} frames; it is of another file.")
    heads = {name: prediction.head(name) for name in SCORES if name in prediction.rows()[0]}
    if not {"informative_score", "relevance_score"} <= heads.keys():
        raise UserError(f"{prediction.name} lacks informative or relevance scores; it was not written by aha.")
    return ScoreTrack(
        samples.times, samples.frames, heads["informative_score"], heads["relevance_score"], heads.get("uncertainty_score"), duration
    )


def summary(result: Result, video: Path, note: str, reel: ReelInfo | None) -> dict[str, Any]:
    """What summary.json holds; instructions/summary.md describes it. Times are seconds of the video, scores unrounded."""
    track, chosen = result.track, {(h.first, h.last): h for h in result.highlights}

    def of(first: int, last: int) -> dict[str, Any]:
        heads = {"informative": track.informative_F, "relevance": track.relevance_F, "uncertainty": track.uncertainty_F}
        means = {name: None if values is None else float(np.mean(values[first:last])) for name, values in heads.items()}
        return {"score": float(np.mean(result.fused_F[first:last])), **means}

    moments = [
        {"rank": h.rank, "start": h.start, "end": h.end, "peak_time": h.peak_time, "caption": h.sentence, **of(h.first, h.last)}
        for h in sorted(chosen.values(), key=lambda h: h.start)
    ]
    segments = [
        {"start": s.start, "end": s.end, "ended_by": s.reason, **of(s.first, s.last),
         "chosen": [h.rank for h in result.highlights if h.start < s.end and h.end > s.start]}
        for s in result.segments
    ]  # fmt: skip
    return {
        "version": 1, "video": video.name, "file": file_of(video), "duration": track.duration, "query": result.query,
        "frames_scored": len(track), "note": note,
        "evidence": None if result.evidence is None else {**asdict(result.evidence), "is_clear": result.evidence.is_clear},
        "chosen_by": result.chosen_by, "reel_seconds": None if reel is None else reel.duration, "segments": segments, "moments": moments,
    }  # fmt: skip


def file_of(video: str | os.PathLike) -> dict[str, int]:
    """What says that a video file is still the one that was scored: bytes and time of change (ns)."""
    facts = os.stat(video)
    return {"bytes": facts.st_size, "changed_ns": facts.st_mtime_ns}


def check_apart(video: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Raises UserError for a video that lies in the result folder under the name of a result: writing that one would destroy it."""
    video, folder = Path(video).resolve(), Path(folder).resolve()
    if video.parent == folder and video.name in (*FILES, CURVE_VIDEO):
        raise UserError(f"video {video} would be replaced by the {video.name} that is written there; choose another output.")


def is_result(video: Path) -> bool:
    """Whether a video file is one that an earlier run wrote into a result folder."""
    return video.name in ("reel.mp4", CURVE_VIDEO) and (video.parent / "scores.json").is_file()


def write_result(
    result: Result,
    video: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    frame_fps: float,
    titles: bool = False,
    reel: bool = True,
    export: Sequence[str] = (),
    curve_video: bool = False,
    note: str = "",
    progress: Callable[[int, int], None] | None = None,
    curve_progress: Callable[[int, int], None] | None = None,
) -> ReelInfo | None:
    """Write FILES into `folder` (see aha.core.files.open_output) and take its mark off; returns what the reel became.

    titles: burn rank and query into the pictures. export: kinds of timelines (aha.highlights.timelines). curve_video: the whole video with
    its moving curve, too. Nothing chosen (no clear moment, or none above min_score) writes no reel and no timeline, and removes those that
    an earlier run left. summary.json comes last, when all that was asked for is there. Raises UserError.
    """
    folder, video = Path(folder), Path(video)
    check_apart(video, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)  # it says that the folder is complete
    if result.evidence is not None:
        said = str(result.evidence)
        note = f"{note} {said[0].upper()}{said[1:]}."
    free = shutil.disk_usage(folder).free
    if free < 1 << 20:
        raise UserError(
            f"the disk of {folder} has {free >> 10} KiB left, not enough for a reel and a report; free some or choose another output."
        )
    write_predictions(folder / "scores.json", [prediction(result, video.stem, frame_fps)])
    segment_means = [float(np.mean(result.fused_F[s.first : s.last])) for s in result.segments]
    write_json(folder / "segments.json", [
        {"start": s.start, "end": s.end, "score": mean, "reason": s.reason,
         **({"decided_at": float(result.track.times_F[s.decided_at])} if s.decided_at is not None else {})}
        for s, mean in zip(result.segments, segment_means)
    ])  # fmt: skip
    write_json(
        folder / "highlights.json",
        [{**h.to_json(), "evidence": None if result.evidence is None else result.evidence.strength} for h in result.highlights],
    )
    index = video_index(video)
    write_text(folder / "chapters.vtt", chapters_vtt(result.segments, result.highlights, result.query, index.player_seconds))
    from aha.highlights.plot import write_timeline  # matplotlib takes a second to import

    stills = stills_of(index, result.track, result.fused_F, result.highlights)
    write_poster(folder / "poster.jpg", stills)
    title = f"{result.query} – {video.name}"
    write_timeline(folder / "timeline.png", result.track, result.fused_F, result.segments, result.highlights, title, stills.strip)
    info = None
    for earlier in ("reel.mp4", CURVE_VIDEO):
        (folder / earlier).unlink(missing_ok=True)
    if reel and result.highlights:
        clips = [Clip(h.start, h.end, title_of(h, result.query) if titles else None) for h in result.highlights]
        info = write_reel(video, clips, folder / "reel.mp4", progress=progress)
    for kind in ADAPTERS:
        (folder / f"reel.{kind}").unlink(missing_ok=True)
    if result.highlights:
        write_timelines(folder, video, result.highlights, export)
    if curve_video:
        from aha.highlights.curve_video import write_curve_video

        write_curve_video(folder / CURVE_VIDEO, video, result.track, result.fused_F, result.highlights, result.query, curve_progress)
    from aha.highlights.report import write_report

    structured = summary(result, video, note, info)
    write_report(folder / "report.html", video, structured, result.track, result.fused_F, stills)
    write_json(folder / "summary.json", structured)
    finish_output(folder)
    return info
