"""Reads SumMe's official ground truth: a folder of NAME.mat, one a video (Gygli et al., ECCV 2014).

`user_score` [nFrames, users]: 0 = not selected, any positive number = selected; `nFrames`, `FPS`, `video_duration`. The community's h5
files hold the same selections as `user_summary` beside change points, which the .mat files lack: numbers need the h5, preparation and
training read these.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aha.errors import UserError


@dataclass(frozen=True, slots=True)
class SumMeVideo:
    """One video: users [A, n_frames] bool, which frames each person selected; length in seconds."""

    name: str
    users: np.ndarray
    fps: float
    length_s: float

    @property
    def n_frames(self) -> int:
        return self.users.shape[1]

    @property
    def importance(self) -> np.ndarray:
        """[n_frames] float32 in [0, 1]: the share of annotators who selected the frame, the label of training."""
        return self.users.mean(axis=0, dtype=np.float64).astype(np.float32)


def read_summe(folder: str | Path) -> dict[str, SumMeVideo]:
    """Every video of the folder by name, in the order of the names. Raises UserError naming file and field."""
    folder = Path(folder)
    files = sorted(folder.glob("*.mat"))
    if not files:
        raise UserError(f"no .mat file in {folder}; SumMe's ground truth is the folder GT of its archive (datasets/README.md).")
    return {path.stem: _read(path) for path in files}


def _read(path: Path) -> SumMeVideo:
    from scipy.io import loadmat  # slow to import, and only SumMe needs it
    from scipy.io.matlab import MatReadError

    cure = "it is damaged or not SumMe's, download it again"
    try:
        fields = loadmat(path)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        NotImplementedError,
        MatReadError,
        MemoryError,
        zlib.error,
    ) as error:
        raise UserError(f"{path} cannot be read ({error}); {cure}.") from error
    missing = [name for name in ("user_score", "nFrames", "FPS") if name not in fields]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; {cure}.")
    scores = np.asarray(fields["user_score"])
    n_frames, fps = (float(np.asarray(fields[name]).reshape(-1)[0]) for name in ("nFrames", "FPS"))
    if scores.ndim != 2 or not scores.size or scores.dtype.kind not in "uifb" or scores.shape[0] != n_frames:
        raise UserError(f"{path}: user_score is {scores.shape}, not ({n_frames:g}, annotators); {cure}.")
    if not np.isfinite(scores).all() or scores.min() < 0 or not 0 < fps < 1000:
        raise UserError(f"{path}: user_score or FPS ({fps:g}) is no number from 0 on; {cure}.")
    length = float(np.asarray(fields["video_duration"]).reshape(-1)[0]) if "video_duration" in fields else n_frames / fps
    return SumMeVideo(path.stem, (scores > 0).T, fps, length)
