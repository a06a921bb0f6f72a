"""The one video reader: `read_video`, `iter_frames` and `probe` (aha.video.reader), and the library of a folder of videos."""

from aha.video.container import Limits
from aha.video.reader import iter_frames, probe, read_video

__all__ = ["Limits", "iter_frames", "probe", "read_video"]
