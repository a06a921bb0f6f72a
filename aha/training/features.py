"""Vision features of the training videos, computed once before training: epochs after that read no video and run no vision tower.

Shapes: F frames, P patches (those that pooling looks at), C tower width.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aha.data.feature_cache import FeatureCache, tower_key, video_key
from aha.data.mixture import Mixture
from aha.data.samples import QuestionSample, RelevanceSample, Sample
from aha.errors import UserError
from aha.models import AhaModel
from aha.video.reader import VideoFrames, read_video


def has_own_pixels(sample: Sample) -> bool:
    """Whether the pictures of a sample are changed at random (HIHD), so that features cannot stand for them."""
    return isinstance(sample, RelevanceSample) and len(sample.degradations) > 0


class VisionCache:
    """Reads items of a mixture with features [F,P,C] in place of pixels where the cache has them."""

    def __init__(self, folder: str | os.PathLike, model: AhaModel):
        self.cache = FeatureCache(folder, tower_key(model))
        self.nothing_1PC = model.used_patches(torch.zeros(1, *model.config.feature_shape)).cpu()

    def item(self, mixture: Mixture, i: int) -> dict[str, Any]:
        """Item i; `frames` are features, or pixels where those are not in the cache."""
        source, sample = mixture.items[i]
        return mixture[i] if has_own_pixels(mixture.sources[source].samples[sample]) else mixture.item(i, self.read)

    def read(self, path: str, *, fps: float, start: float, max_frames: int, size: int) -> VideoFrames:
        """`read_video` with features as `frames_TCHW`, or `read_video` itself."""
        key = key_of(path, fps, start, max_frames)
        features_FPC, facts_3F = (None, None) if key is None else (self.cache.get(key), self.cache.get(key + "-facts"))
        if features_FPC is None or facts_3F is None:
            return read_video(path, fps=fps, start=start, max_frames=max_frames, size=size)
        indices, times, frame_times = facts_3F.tolist()
        return VideoFrames(
            frames_TCHW=features_FPC, frame_indices=[int(i) for i in indices], times=times, frame_times=frame_times,
            video_fps=float("nan"), duration=float("nan"), frame_count=0, sample_fps=fps,
        )  # fmt: skip

    @torch.no_grad()
    def fill(self, mixture: Mixture, model: AhaModel, rank: int, world_size: int) -> None:
        """Compute what is missing; rank r takes every world_size-th item. A video that cannot be read is left to training to report."""

        def compute(path: str, *, fps: float, start: float, max_frames: int, size: int) -> VideoFrames:
            video = self.read(path, fps=fps, start=start, max_frames=max_frames, size=size)
            if not isinstance(video.frames_TCHW, np.ndarray):
                return video
            features_FPC = model.used_patches(model.tower_features(torch.from_numpy(video.frames_TCHW)))
            key = key_of(path, fps, start, max_frames)
            self.cache.put(key + "-facts", torch.tensor([video.frame_indices, video.times, video.frame_times], dtype=torch.float64))
            self.cache.put(key, features_FPC)
            return replace(video, frames_TCHW=features_FPC)

        own = range(rank, len(mixture), world_size)
        for i in tqdm(own, desc="vision features", unit="video", disable=rank > 0):
            source, sample = mixture.items[i]
            if has_own_pixels(mixture.sources[source].samples[sample]):
                continue
            try:
                mixture.item(i, compute)
            except UserError:
                continue

    def check_every_epoch(self, mixture: Mixture) -> None:
        """Raise UserError where some epoch would need the tower for some sample: with ZeRO-3 all ranks must run it together, or none."""
        for source in mixture.sources:
            for sample in source.samples:
                if has_own_pixels(sample) or isinstance(sample, QuestionSample):
                    raise UserError(
                        f"--vision_cache cannot be used with ZeRO-3 for {sample.sample_id}, whose frames differ from epoch to epoch; "
                        "leave --vision_cache out or use ZeRO-2."
                    )


def key_of(path: str, fps: float, start: float, max_frames: int) -> str | None:
    """None where the file is not there (the reader says so)."""
    return video_key(path, fps=fps, max_frames=max_frames, start=start) if Path(path).is_file() else None
