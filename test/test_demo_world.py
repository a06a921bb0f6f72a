"""The demo model on a video that is not of its world: one loud line."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from highlights_media import make_video

from aha.cli import commands
from aha.demo.dataset import plan_dataset, write_video
from aha.demo.scenes import PLACES, draw_frame, letterbox, random_scene, random_thing
from aha.demo.world import looks_like_demo, pictures_look_like_demo


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_the_world_is_of_it(place):
    random = np.random.default_rng(PLACES.index(place))
    for _ in range(3):
        scenes = [random_scene(random, [random_thing(random) for _ in range(int(random.integers(1, 3)))], place) for _ in range(5)]
        assert pictures_look_like_demo([letterbox(draw_frame(scene, 0.5, 384, 288)) for scene in scenes])


def others() -> dict[str, list[np.ndarray]]:
    random, y, x = np.random.default_rng(0), np.mgrid[:96, :128] / 96, None
    y, x = y
    coarse = np.kron(random.integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1)))  # patches of any colour
    landscape = np.stack([80 + 120 * y, 120 + 60 * np.sin(9 * x), 220 - 150 * y], -1) + random.normal(0, 12, (96, 128, 3))
    return {
        "noise": [random.integers(0, 256, (96, 128, 3))], "black": [np.zeros((96, 128, 3))], "white": [np.full((96, 128, 3), 255)],
        "ramp": [np.stack([255 * x / x.max()] * 3, -1)], "patches": [coarse], "landscape": [landscape],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(others()))
def test_other_pictures_are_not(name):
    assert not pictures_look_like_demo([np.clip(picture, 0, 255).astype(np.uint8) for picture in others()[name]])


def test_the_line_is_said_once_and_only_where_it_is_true(tmp_path, monkeypatch, capsys):
    plan = plan_dataset(5)[7]
    write_video(replace(plan, fps=Fraction(1)), tmp_path / "shapes.mp4")
    make_video(tmp_path / "numbers.mp4", seconds=3, fps=5, sound=False)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with av.open(str(tmp_path / "noise.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(3):
            picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    assert looks_like_demo(tmp_path / "shapes.mp4")
    choice = SimpleNamespace(is_demo=True)
    monkeypatch.setattr(commands, "load_choice", lambda _: choice)
    videos = [tmp_path / name for name in ("broken.mp4", "shapes.mp4", "numbers.mp4", "noise.mp4")]
    commands.load_model(SimpleNamespace(), videos)
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1 and "numbers.mp4 shows something else than coloured shapes" in " ".join(said.split())
    commands.load_model(SimpleNamespace(), videos[:2])
    choice.is_demo = False
    commands.load_model(SimpleNamespace(), videos)
    assert "WARNING" not in capsys.readouterr().err
