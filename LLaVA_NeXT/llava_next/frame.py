"""What a video frame is to a base model. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameShape:
    """tokens: placeholders of a frame in the text; side: height and width of its picture in pixels."""

    tokens: int
    side: int


PUBLISHED = FrameShape(tokens=49, side=384)  # LLaVA-OneVision-Qwen2; what is counted before a base is at hand is counted for it
