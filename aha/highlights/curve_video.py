"""The whole video with its curve below, which grows as the video goes on: at each moment what the model had said up to then.

    aha highlights talk.mp4 --query "how the tyre is repaired" --curve_video --output outputs/talk     # outputs/talk/curve.mp4

H height, W width, F scored frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aha.core.clock import clock, clock_ticks
from aha.highlights.plot import CHOSEN
from aha.highlights.reel import Clip, text_line, write_reel
from aha.highlights.timeline import Highlight, ScoreTrack
from aha.video.packet_index import video_index

MAX_SIDE = 1280  # pixels of the video's pictures
DARK, SOFT, LINE = "#0d1117", "#8b949e", "#4493f8"
DPI = 100


def write_curve_video(
    path: str | os.PathLike, video: str | os.PathLike, track: ScoreTrack, fused_F: np.ndarray, highlights: Sequence[Highlight],
    query: str, progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write the MP4 with the video's sound. progress(done, total): told the frames written. Raises UserError as write_reel does."""
    panel = Panel(track, fused_F, highlights, " ".join(query.split()))
    whole = [Clip(0.0, float(video_index(video).duration))]
    write_reel(video, whole, path, max_side=MAX_SIDE, crf=23, progress=progress, draw=panel.below)


class Panel:
    """What is shown below the pictures; drawn once, then cut at the moment."""

    def __init__(self, track: ScoreTrack, fused_F: np.ndarray, highlights: Sequence[Highlight], query: str):
        self.track, self.fused_F, self.highlights, self.query = track, fused_F, highlights, query
        self.full_HW3 = self.empty_HW3 = np.zeros((0, 0, 3), np.uint8)
        self.left = self.right = 0  # columns of the axes
        self.row = 0  # height of the line of text

    def below(self, image_HWC: np.ndarray, seconds: float) -> np.ndarray:
        """The picture with the panel as it is at this second."""
        height, width = image_HWC.shape[:2]
        if self.full_HW3.shape[1] != width:
            self._draw(width, 2 * round(min(max(0.26 * width, 0.2 * height, 90), 360) / 2))
        share = min(max(seconds / max(self.track.duration, 1e-6), 0.0), 1.0)
        now = round(self.left + share * (self.right - self.left))
        panel = self.empty_HW3.copy()
        panel[:, :now] = self.full_HW3[:, :now]
        line = max(1, width // 400)
        panel[self.row :, max(0, now - line) : now + line] = 255
        self._say(panel, seconds)
        return np.concatenate([image_HWC, panel])

    def _say(self, panel: np.ndarray, seconds: float) -> None:
        """The query on the left, moment and score on the right."""
        size, width = max(9, self.row // 2), panel.shape[1]
        frame = max(0, int(np.searchsorted(self.track.times_F, seconds + 1e-6, side="right")) - 1)
        value = f"{clock(seconds)}   {self.fused_F[frame]:.2f}"
        room = min(width // 2, size * len(value) * 2 // 3)
        number = text_line(value, size, room, self.row)
        query = text_line(self.query, size, max(1, width - room - 2 * size), self.row)
        for text, at in ((query, size // 2), (number, width - room)):
            place = panel[: self.row, at : at + text.shape[1]]
            np.maximum(place, text[: place.shape[0], : place.shape[1], None], out=place)

    def _draw(self, width: int, height: int) -> None:
        self.row = max(18, min(height // 4, 44))
        self.empty_HW3, self.full_HW3 = self._figure(width, height, False), self._figure(width, height, True)

    def _figure(self, width: int, height: int, with_curve: bool) -> np.ndarray:
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=DARK)
        canvas = FigureCanvasAgg(figure)
        points = max(5.0, min(9.0, height / 22))  # of the text
        pixels = points * DPI / 72
        left, bottom = 2.6 * pixels / width, 1.9 * pixels / height
        axes = figure.add_axes((left, bottom, 1 - left - pixels / width, 1 - bottom - self.row / height), facecolor=DARK)
        low, high = min(0.0, float(self.fused_F.min())), max(1.0, float(self.fused_F.max()))
        if with_curve:
            for highlight in self.highlights:
                axes.axvspan(highlight.start, highlight.end, color=CHOSEN, alpha=0.4, lw=0)
            times_F = np.append(self.track.times_F, self.track.duration)
            values_F = np.append(self.fused_F, self.fused_F[-1])
            axes.fill_between(times_F, low, values_F, color=LINE, alpha=0.25, lw=0)
            axes.plot(times_F, values_F, color=LINE, lw=max(1.0, width / 600))
        axes.set_xlim(0, max(self.track.duration, 1e-3))
        axes.set_ylim(low, high)
        axes.set_yticks([low, (low + high) / 2, high], [f"{v:.2g}" for v in (low, (low + high) / 2, high)])
        axes.set_xticks(ticks := clock_ticks(0, self.track.duration, max(3, width // 90)), [clock(t) for t in ticks])
        if ticks[-1] > 0.97 * self.track.duration:
            axes.get_xticklabels()[-1].set_horizontalalignment("right")  # it would stand half outside
        axes.tick_params(colors=SOFT, labelsize=points, length=2, pad=2)
        axes.grid(axis="y", color=SOFT, alpha=0.25, lw=0.5)
        axes.spines[:].set_visible(False)
        canvas.draw()
        box = axes.get_window_extent()
        self.left, self.right = round(box.x0), round(box.x1)
        return np.asarray(canvas.buffer_rgba())[:height, :width, :3].copy()
