"""Vision features of the training videos, computed once before training: epochs after that read no video and run no vision tower.

Shapes: F frames, P patches (those that pooling looks at), C tower width.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aha.data.feature_cache import FeatureCache, VideoFeatures, tower_key, video_key
from aha.data.mixture import Mixture
from aha.data.samples import QuestionSample, RelevanceSample, Sample
from aha.errors import UserError
from aha.models import AhaModel
from aha.video.reader import NO_PIXELS, Frame, VideoFrames, read_video


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

    def stored(self, path: str, *, max_frames: int, size: int, **sampling: Any) -> VideoFrames | None:
        """What `read_video` gives, with features as `frames_TCHW`; None where they are not in the cache (or the file is not there)."""
        del size  # the tower's
        found = self.cache.get(video_key(path, **sampling), max_frames) if Path(path).is_file() else None
        if found is None:
            return None
        _, indices, times, frame_times = zip(*found.frames)
        return VideoFrames(
            frames_TCHW=found.features_FPC,  # type: ignore[arg-type]  # features in the place of pixels, which the mixture hands on as they are
            frame_indices=list(indices), times=list(times), frame_times=list(frame_times),
            video_fps=float("nan"), duration=float("nan"), frame_count=0, sample_fps=sampling["fps"],
        )  # fmt: skip

    def read(self, path: str, **request: Any) -> VideoFrames:
        """`read_video` with features as `frames_TCHW`, or `read_video` itself. request: fps, start, max_frames, size, backend."""
        found = self.stored(path, **request)
        return read_video(path, **request) if found is None else found

    @torch.no_grad()
    def fill(self, mixture: Mixture, model: AhaModel, rank: int, world_size: int) -> None:
        """Compute what is missing; rank r takes every world_size-th item. A video that cannot be read is left to training to report."""

        def compute(path: str, *, max_frames: int, size: int, **sampling: Any) -> VideoFrames:
            if self.stored(path, max_frames=max_frames, size=size, **sampling) is None:
                # One more than is planned: where the video ends there, scoring, which takes every frame, finds all of them.
                video = read_video(path, max_frames=max_frames + 1, size=size, **sampling)
                frames = [Frame(NO_PIXELS, *row) for row in zip(video.frame_indices, video.times, video.frame_times, strict=True)]
                features_FPC = model.used_patches(model.tower_features(torch.from_numpy(video.frames_TCHW)))
                end = sampling["start"] + len(frames) / sampling["fps"]
                complete = len(frames) <= max_frames or end >= video.duration + 1e-9
                self.cache.put(video_key(path, **sampling), VideoFeatures(frames, features_FPC, complete))
            return self.read(path, max_frames=max_frames, size=size, **sampling)

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
