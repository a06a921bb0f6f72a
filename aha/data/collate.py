"""Samples -> one batch, padded on the right.

Dimensions in names: B samples, T tokens of the longest, N frames of all samples together, C H W of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aha.conversation import IGNORE_INDEX
from aha.core.heads import LABELLED


def collate(samples: Sequence[dict[str, Any]], pad_id: int, pad_to_multiple_of: int = 1) -> dict[str, Any]:
    """Batch the dicts that `aha.data.mixture.Mixture` gives; T is the longest sample's length, or the next multiple.

    Returns input_ids_BT, attention_mask_BT (1 = token, 0 = padding), labels_BT, informative_labels_BT (int64) and relevance_labels_BT
    (float32), with IGNORE_INDEX where there is no label; frames [N,3,S,S] uint8, in the order of the `<image>` tokens of the batch
    (sample after sample); and lists with one entry per sample: sample_ids, num_frames, video_paths, frame_fps, frame_times (seconds),
    frame_indices (in the original video).
    """
    longest = max(len(sample["input_ids"]) for sample in samples)
    length = longest + -longest % pad_to_multiple_of

    def padded(name: str, value: float, dtype: torch.dtype) -> torch.Tensor:
        result = torch.full((len(samples), length), value, dtype=dtype)
        for row, sample in zip(result, samples):
            row[: len(sample[name])] = torch.as_tensor(sample[name], dtype=dtype)
        return result

    attention_mask_BT = torch.zeros(len(samples), length, dtype=torch.int64)
    for row, sample in zip(attention_mask_BT, samples):
        row[: len(sample["input_ids"])] = 1
    return {
        "input_ids_BT": padded("input_ids", pad_id, torch.int64),
        "attention_mask_BT": attention_mask_BT,
        "labels_BT": padded("labels", IGNORE_INDEX, torch.int64),
        **{
            f"{head.labels}_BT": padded(head.labels, IGNORE_INDEX, getattr(torch, head.label))
            for head in LABELLED
            if head.label is not None
        },
        "frames": torch.cat([torch.as_tensor(sample["frames"]) for sample in samples]),
        "num_frames": [len(sample["frames"]) for sample in samples],
        "sample_ids": [sample["sample_id"] for sample in samples],
        "video_paths": [sample["video_path"] for sample in samples],
        "frame_fps": [sample["frame_fps"] for sample in samples],
        "frame_times": [sample["frame_times"] for sample in samples],
        "frame_indices": [sample["frame_indices"] for sample in samples],
    }
