"""Pictures made worse on purpose."""

from __future__ import annotations

import random

import numpy as np
import pytest

from aha.video.degrade import KINDS, degrade, degrade_frame


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (4, 3, 384, 384), dtype=np.uint8)


def test_only_frames_within_an_interval_change(frames):
    before = frames.copy()
    result = degrade(frames, [0.0, 1.0, 2.0, 3.0], [(1.0, 2.0, "blackout")], random.Random(0))
    assert np.array_equal(frames, before)  # not in place
    assert np.array_equal(result[[0, 3]], frames[[0, 3]])
    assert not result[[1, 2]].any()
    assert degrade(frames, [0.0, 1.0, 2.0, 3.0], [(9.0, 10.0, "blackout")], random.Random(0)) is frames


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(384, 384), (50, 70)])
def test_kinds(frames, kind, shape):
    frame = frames[0, :, : shape[0], : shape[1]]
    result = degrade_frame(frame, kind, random.Random(1))
    assert result.shape == frame.shape and result.dtype == np.uint8
    assert not np.array_equal(result, frame)
    assert np.array_equal(result, degrade_frame(frame, kind, random.Random(1)))


def test_what_the_kinds_do(frames):
    rng = random.Random(3)
    coarse = degrade_frame(frames[0], "quality", rng)
    blocks = coarse.reshape(3, 64, 6, 64, 6)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert abs(float(coarse.mean()) - float(frames[0].mean())) < 1
    assert set(np.unique(degrade_frame(frames[0], "color_banding", rng))) == {0, 64, 128, 192}
    noisy = degrade_frame(frames[0], "block_noise", rng)
    share = (noisy != frames[0]).any(0).mean()
    assert 0.02 < share < 0.25
    with pytest.raises(ValueError, match="rain"):
        degrade_frame(frames[0], "rain", rng)
