"""Moments as people write and read them."""

from __future__ import annotations

import math


def clock(seconds: float) -> str:
    """Seconds as people write them: 1:02:03 or 4:05."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}" if minutes >= 60 else f"{minutes}:{second:02d}"


STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000)  # seconds between two ticks that people read


def clock_ticks(start: float, end: float, most: int = 9) -> list[float]:
    """Seconds in [start, end], whole and evenly apart, that a time axis names: at most `most` of them."""
    step = next((s for s in STEPS if (end - start) / s <= most - 1), math.ceil((end - start) / (most - 1) / 36000) * 36000)
    return [float(step * k) for k in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1)]
