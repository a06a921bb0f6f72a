"""Vision features are computed once, whoever needs them first: training or scoring; and what 18f6d84 left is told from what is new."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture
from tiny_benchmarks import tiny_model, write_tvsum
from training_data import FPS
from training_data import write_tvsum as write_mixture

from aha import score
from aha.conversation import Query, load_tokenizer
from aha.core.prediction import read_predictions, write_predictions
from aha.data.feature_cache import FeatureCache, VideoFeatures, video_key
from aha.data.mixture import build_mixture
from aha.errors import UserError
from aha.models import AhaModel
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer
from aha.training.features import VisionCache
from aha.video.reader import NO_PIXELS, Frame, probe

OLD = shared_fixture("from_18f6d84")


@pytest.fixture(scope="module")
def loaded():
    base, adapter = (str(shared_fixture(f"reference/{name}")) for name in ("llava-onevision-qwen2-tiny-ov", "aha-adapter"))
    return ModelChoice(base, adapter, device="cpu").load()


@pytest.fixture
def tower(monkeypatch):
    """Frames that went through the vision tower."""
    seen: list[int] = []
    real = AhaModel.tower_features
    monkeypatch.setattr(AhaModel, "tower_features", lambda self, frames, *rest: seen.append(len(frames)) or real(self, frames, *rest))
    return seen


def write_clip(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = 96
        for k in range(frames):
            picture = np.full((96, 96, 3), 9 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("frames", [17, 20, 23])  # 4.25, 5 and 5.75 seconds: training plans whole seconds, scoring takes all samples
@pytest.mark.parametrize("fps", [1, 2])
def test_training_and_scoring_share_features(loaded, tower, tmp_path, frames, fps):
    model, tokenizer = loaded
    config = write_mixture(tmp_path / "data", videos=1, seconds=6, fps=fps, max_num_frames=100)
    clip = tmp_path / "data" / "video" / "clip00.mp4"
    write_clip(clip, frames)
    mixture = build_mixture(config, load_tokenizer(shared_fixture("reference/llava-onevision-qwen2-tiny-ov")))
    settings = ScoreConfig(frame_fps=float(fps), feature_cache=str(tmp_path / "a"))
    samples = math.ceil(frames / FPS * fps)

    VisionCache(tmp_path / "a", model).fill(mixture, model, 0, 1)  # training first
    assert sum(tower) == samples
    tower.clear()
    shared = Scorer(model, tokenizer, settings).score(clip, [Query("q")])
    assert not tower and len(shared.rows()) == samples
    alone = Scorer(model, tokenizer, ScoreConfig(frame_fps=fps)).score(clip, [Query("q")])
    assert shared.record == alone.record

    tower.clear()
    Scorer(model, tokenizer, ScoreConfig(frame_fps=fps, feature_cache=str(tmp_path / "b"))).score(clip, [])  # scoring first
    assert sum(tower) == samples
    tower.clear()
    cache = VisionCache(tmp_path / "b", model)
    cache.fill(mixture, model, 0, 1)
    item, pixels = cache.item(mixture, 0), mixture[0]
    assert not tower and item["frame_indices"] == pixels["frame_indices"] and item["frame_times"] == pixels["frame_times"]
    expected = model.used_patches(model.tower_features(torch.from_numpy(pixels["frames"])))
    assert torch.allclose(item["frames"], expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(stored=st.integers(1, 9), complete=st.booleans(), wanted=st.one_of(st.none(), st.integers(1, 12)))
def test_the_beginning_of_a_longer_sampling_is_found(tmp_path_factory, stored, complete, wanted):
    cache = FeatureCache(tmp_path_factory.mktemp("cache"), "tower")
    features = torch.arange(stored * 6.0).view(stored, 2, 3)
    cache.put("k" * 32, VideoFeatures([Frame(NO_PIXELS, 3 * k, k / 3, k / 2.9) for k in range(stored)], features, complete))
    found = cache.get("k" * 32, wanted)
    if not complete and (wanted is None or wanted > stored):
        assert found is None
        return
    count = min(stored, wanted or stored)
    assert torch.equal(found.features_FPC, features[:count]) and found.complete == (complete and count == stored)
    assert found.frames == [Frame(NO_PIXELS, 3 * k, k / 3, k / 2.9) for k in range(count)]


def test_equal_sampling_has_one_key_and_every_other_its_own(tmp_path):
    write_clip(tmp_path / "a.mp4", 4)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    key = video_key(tmp_path / "a.mp4", fps=1)
    assert key == video_key(str(tmp_path / "a.mp4"), fps=1.0, start=0)
    others = [{"fps": 2}, {"fps": 1, "start": 1.0}, {"fps": 1, "sampling": "reference"}, {"fps": 1, "backend": "decord"},
              {"fps": None, "num_frames": 4}]  # fmt: skip
    keys = {key, video_key(tmp_path / "b.mp4", fps=1), *(video_key(tmp_path / "a.mp4", **other) for other in others)}
    assert len(keys) == 2 + len(others)


# ---- what 18f6d84 left ----


def test_a_run_that_18f6d84_began_is_refused_by_name(tmp_path):
    parts = next(OLD.glob("*.parts-*"))
    shutil.copytree(parts, tmp_path / parts.name)
    flags = [
        *tiny_model(),
        "--dataset",
        "tvsum",
        "--data_root",
        str(write_tvsum(tmp_path / "data")),
        "--output",
        str(tmp_path / "tvsum.json"),
    ]
    with pytest.raises(UserError, match=f"{parts.name} holds the beginning of a run of an earlier version .18f6d84.*remove the folder"):
        score.main(flags)
    assert (tmp_path / parts.name / "rank-0000-of-0001.jsonl").read_bytes() == (parts / "rank-0000-of-0001.jsonl").read_bytes()
    shutil.rmtree(tmp_path / parts.name)
    score.main(flags)
    new, old = (list(read_predictions(path)) for path in (tmp_path / "tvsum.json", OLD / "tvsum.json"))
    assert [p.record.keys() for p in new] == [p.record.keys() for p in old]
    assert [p.record["true_frames_list"] for p in new] == [p.record["true_frames_list"] for p in old]


def test_a_prediction_file_of_18f6d84_is_read_and_written_as_it_was(tmp_path):
    write_predictions(tmp_path / "again.json", read_predictions(OLD / "tvsum.json"))
    assert (tmp_path / "again.json").read_bytes() == (OLD / "tvsum.json").read_bytes()


def test_features_of_18f6d84_are_left_alone(loaded, tower, tmp_path):
    """They lie in the same folder under keys of another layout: computed anew, never mistaken for the new ones."""
    shutil.copytree(OLD / "features", tmp_path / "features")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    (folder,) = (tmp_path / "features").iterdir()
    video = shared_fixture("reference/videos/landscape.mp4")
    config = ScoreConfig(max_num_frames=2, feature_cache=str(tmp_path / "features"))
    first = Scorer(*loaded, config).score(video, [Query("first")])
    assert sum(tower) == 2 and [path.name for path in (tmp_path / "features").iterdir()] == [folder.name]
    again = Scorer(*loaded, config).score(video, [Query("first")])
    assert sum(tower) == 2 and again.record == first.record
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(before) + 1
    assert json.dumps(first.record) == json.dumps(Scorer(*loaded, ScoreConfig(max_num_frames=2)).score(video, [Query("first")]).record)
    assert probe(video).frame_count > 2
