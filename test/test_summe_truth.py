"""SumMe's official .mat files: the same selections as the community's h5; damaged ones are one sentence."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import shared_fixture
from scipy.io import savemat

from aha.errors import UserError
from aha.eval.community import read_h5
from aha.eval.summe_truth import read_summe


def test_mat_and_h5_hold_the_same_selections():
    official = read_summe(shared_fixture("published/summe_gt"))
    community = read_h5(shared_fixture("published/eccv16_dataset_summe_synthetic.h5"))
    assert {video.title for video in community.values()} == set(official)
    for video in community.values():
        assert np.array_equal(official[video.title].users, video.truth.users)
        assert official[video.title].length_s == pytest.approx(official[video.title].n_frames / official[video.title].fps, rel=1e-3)
        assert 0 <= official[video.title].importance.min() <= official[video.title].importance.max() <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [({"user_score": None}, "lacks user_score"), ({"nFrames": 7}, r"is \(5, 3\), not \(7"), ({"FPS": 0}, "FPS"), ({"user_score": -np.ones((5, 3))}, "from 0 on")],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(tmp_path, change, said):
    fields = {"user_score": np.zeros((5, 3)), "nFrames": 5, "FPS": 25.0} | change
    savemat(tmp_path / "a.mat", {name: value for name, value in fields.items() if value is not None})
    with pytest.raises(UserError, match=said):
        read_summe(tmp_path)


def test_no_file_and_no_matlab_file(tmp_path):
    with pytest.raises(UserError, match="no .mat file"):
        read_summe(tmp_path)
    for content in (b"", b"no matlab", b"MATLAB 5.0 MAT-file" + bytes(200)):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(UserError, match="a.mat"):
            read_summe(tmp_path)


@given(st.data())
def test_a_file_cut_off_or_changed_anywhere_is_read_or_one_sentence(tmp_path_factory, data):
    whole = bytearray(shared_fixture("published/summe_gt/kite-day.mat").read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole = whole[:place]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("gt")
    (folder / "a.mat").write_bytes(whole)
    with suppress(UserError):
        read_summe(folder)
