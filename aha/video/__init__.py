"""The one video reader: `read_video`, `iter_frames` and `probe` (aha.video.reader), and the library of a folder of videos."""

from aha.video.reader import iter_frames, probe, read_video

__all__ = ["iter_frames", "probe", "read_video"]
