"""SumMe -> samples: query = the video's name in words; label of a frame = the share of people who took it into their summary (official .mat
files, Gygli et al., ECCV 2014).
"""  # fmt: skip

from __future__ import annotations

from aha.core.folds import folds
from aha.data.samples import Problem, RelevanceSample, Sample, annotated_file
from aha.errors import UserError
from aha.eval.community import Split, read_h5
from aha.eval.summe import words
from aha.eval.summe_truth import SumMeVideo, read_summe
from aha.video.library import VideoFolder


def chosen_names(videos: dict[str, SumMeVideo], split: str, fold: int | Split | None, h5: str | None) -> list[str]:
    """The videos of a split: of one of five seeded folds, or of a published split, whose video_N are named by the h5's `video_name`.

    Raises UserError where a published split cannot be read without an h5."""
    if fold is None or split == "all":
        return list(videos)
    if isinstance(fold, Split):
        if h5 is None:
            raise UserError(
                "SumMe's published splits call videos video_N, which only the h5 file names; give its path as h5 in the mixture."
            )
        names = {name: video.title for name, video in read_h5(h5).items()}
        unknown = [name for name in fold.test if names.get(name) not in videos]
        if unknown:
            raise UserError(f"the split tests {unknown[0]}, which {h5} does not name as one of the annotated videos; are both SumMe's?")
        test = {names[name] for name in fold.test}
    else:
        test = set(folds(dict.fromkeys(videos, ""))[fold])
    return [name for name in videos if (name in test) == (split != "train")]


def load(entry: dict, folder: VideoFolder, split: str, fold: int | Split | None) -> tuple[list[Sample], list[Problem]]:
    """Samples of a mixture entry {"annotations": folder of .mat files, "h5"?}. Left out: unreadable videos, and files of another length."""
    videos = read_summe(entry["annotations"])
    samples: list[Sample] = []
    problems: list[Problem] = []
    for name in chosen_names(videos, split, fold, entry.get("h5")):
        video = videos[name]
        facts, reason = folder.find(f"{name}.mp4")
        by_frame = False
        if facts is not None:
            by_frame, reason = annotated_file(facts, video.n_frames, video.length_s)
        if facts is None or reason:
            problems.append(Problem(entry["name"], name, reason))
            continue
        samples.append(
            RelevanceSample(
                f"{entry['name']}/{name}",
                name,
                facts["path"],
                facts["duration"],
                request=words(name),
                scores=video.importance,
                score_fps=video.n_frames / (facts["duration"] if by_frame else video.length_s),
                by_frame=by_frame,
                held=True,
            )  # fmt: skip
        )
    return samples, problems
