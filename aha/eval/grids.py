"""Where predictions lie in a video and how they are mapped to the grids on which the protocols score.

n = frames of the video, N = scored frames (samples), S = whole seconds, C = 2-second clips.
"""

from __future__ import annotations

import numpy as np

from aha.core.prediction import LENGTHS_AGREE, Samples, check_covered
from aha.errors import UserError
from aha.eval.annotations import TVSumVideo

SLACK = 2.0  # frames by which a count of frames may be off (the last frame's length is often not known)
ROUNDING = 1e-6  # seconds; times written as decimals may fall this much short of the frame they mean


def frames_at(times: np.ndarray, fps: float) -> np.ndarray:
    """Frame shown at each time (seconds): the smallest f with f / fps >= time."""
    return np.ceil((np.asarray(times) - ROUNDING) * fps).astype(np.int64)


def second_frames(n_frames: int, fps: float) -> np.ndarray:
    """[S] frames at seconds 0, 1, 2, ... that lie in the video: the grid of a model that watches one frame a second."""
    frames = frames_at(np.arange(int(n_frames / fps) + 2), fps)
    return frames[frames < n_frames]


def hold(frames: np.ndarray, scores: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Score at each frame of `at`: that of the last sample with frame <= it (before the first sample: the first)."""
    return scores[np.maximum(np.searchsorted(frames, at, side="right") - 1, 0)]


def score_seconds(frames: np.ndarray, scores: np.ndarray, seconds: np.ndarray, fps: float) -> np.ndarray:
    """Score at each second. A sample one frame late counts as the sample of its second.

    At 24, 25 and 30 fps samplers that add 1/fps in floating point are one frame late for most samples; holding would then pair every label
    with the score of the second before.
    """
    at = frames_at(seconds, fps)
    held = np.maximum(np.searchsorted(frames, at, side="right") - 1, 0)
    following = np.minimum(held + 1, len(frames) - 1)
    one_late = (frames[held] != at) & (frames[following] == at + 1) & (fps >= 4)
    return scores[np.where(one_late, following, held)]


def clip_count(length_s: float) -> int:
    """Whole 2-second clips of a video; a shorter video is one clip."""
    return max(1, int(length_s / 2))


def clip_scores(frames: np.ndarray, scores: np.ndarray, length_s: float, fps: float) -> np.ndarray:
    """[C] mean of the scores at seconds 2c and 2c+1 (UMT, CVPR 2022)."""
    seconds = np.arange(2 * clip_count(length_s))
    return score_seconds(frames, scores, seconds, fps).reshape(-1, 2).mean(axis=1)


def clip_label_frames(n_frames: int, length_s: float, fps: float) -> np.ndarray:
    """[C] frame whose annotation labels a clip: floor(2c*fps + fps), the middle of the clip."""
    return np.minimum(np.floor(2 * np.arange(clip_count(length_s)) * fps + fps).astype(np.int64), n_frames - 1)


def same_frames(rate: float, frame_count: float, duration: float, n_frames: int, length_s: float, slack: float = SLACK) -> bool:
    """Whether frame i of a scored file is frame i of the annotated video; False where only their seconds agree (a copy at another rate).

    rate, frame_count, duration: of the file. The rates are the same where they drift apart by at most `slack` frames over the video, or
    where the files have as many frames within the same time (annotated lengths may be rounded to seconds).
    Raises UserError, with both rates, where neither frames nor seconds agree.
    """
    if abs(rate * length_s - n_frames) <= slack:
        return True
    rounded = 1.0 if float(length_s).is_integer() else 0.0
    if abs(duration - length_s) > max(LENGTHS_AGREE * length_s, rounded):
        raise UserError(
            f"the scored file has {rate:.3f} frames a second and lasts {duration:.2f} s, the annotated video {n_frames / length_s:.3f} and "
            f"{length_s:.2f} s; neither frames nor seconds agree, score the annotated video or a copy of the same length."
        )
    return abs(frame_count - n_frames) <= slack


def file_frames(samples: Samples) -> tuple[float, float, float, float] | None:
    """(frames a second, number of frames, seconds, error in frames) of the file that was scored: the slope of its frame numbers over their
    times. None where the samples do not say both, or are fewer than two.

    The slope is the median over pairs that lie half of the samples apart: one wrong number does not change it.
    """
    if samples.frames is None or samples.times is None or len(samples.frames) < 2:
        return None
    apart = len(samples.frames) // 2
    spans = samples.times[apart:] - samples.times[:-apart]
    with np.errstate(over="ignore"):
        rate = float(np.median((samples.frames[apart:] - samples.frames[:-apart]) / spans))
    last = float(samples.times[-1])
    duration = samples.duration if samples.duration is not None else last + float(np.median(np.diff(samples.times)))
    # a frame number says its time to within one frame
    return rate, float(samples.frames[-1]) + rate * (duration - last), duration, SLACK + duration / float(np.median(spans))


def place(prediction: Samples, video: TVSumVideo) -> tuple[np.ndarray, np.ndarray]:
    """(frames [N] int64, scores [N]) of a prediction's samples on its video.

    Frame numbers place it if they are the annotated video's (`same_frames`); its times, where they are those of a copy at another rate, or
    repeat (a picture that stayed on screen). A prediction without frames or times is placed by the number of its scores: every frame, one
    a second, every 15th frame, or 2-second clips.
    Raises UserError, naming video and index, for frames beyond the video's end, for a number of scores that fits no grid, and for a file
    that is not the annotated video.
    """
    where = f"prediction for video {video.video_id}"
    frames, times, scores = prediction.frames, prediction.times, prediction.scores
    if frames is not None and times is not None and (file := file_frames(prediction)) is not None:
        rate, frame_count, duration, slack = file
        held = bool((np.diff(frames) == 0).any())
        try:
            copy = not same_frames(rate, frame_count, duration, video.n_frames, video.length_s, slack)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if copy or held:
            frames = frames_at(times, video.fps)
            if held:  # the last picture is held to the end of the video: within its last frame
                frames = np.where(times < video.n_frames / video.fps, np.minimum(frames, video.n_frames - 1), frames)
            if copy and times[-1] < max(duration, video.length_s):  # a copy may be a little longer
                frames, scores = frames[frames < video.n_frames], scores[frames < video.n_frames]
    elif frames is None and times is not None:
        frames = frames_at(times, video.fps)
    elif frames is None:
        count = len(scores)
        clips = frames_at(np.arange(0, 2 * clip_count(video.length_s), 2), video.fps)
        grids = [np.arange(video.n_frames), second_frames(video.n_frames, video.fps), np.arange(0, video.n_frames, 15), clips]
        if prediction.clip_seconds is not None:
            grids = [clips]
        fitting = next((grid for grid in grids if len(grid) == count), None)
        if fitting is None:
            expected = " or ".join(str(len(grid)) for grid in grids)
            raise UserError(f"{where}: {count} scores where {expected} are expected; give the frame numbers, or score the video again.")
        frames = fitting
    if frames[-1] >= video.n_frames:
        index = int(np.argmax(frames >= video.n_frames))
        raise UserError(
            f"{where}: frame number {index} is {frames[index]}, beyond the video's end (it has {video.n_frames} frames); "
            f"the scores were made from another file or frame rate."
        )
    if frames[0] < 0 or (np.diff(frames) <= 0).any():
        raise UserError(f"{where}: its times fall twice on one frame or before the start; score the video at its own frame rate or less.")
    check_covered(frames / video.fps, video.n_frames / video.fps, where)
    return frames, scores
