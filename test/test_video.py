"""The video reader: frame choice and pixels against the golden data, and against videos whose frames carry their own number."""

from __future__ import annotations

import bisect
import functools
import gc
import hashlib
import json
import math
import os
import statistics
from fractions import Fraction

import av
import numpy as np
import pytest
from barcode_videos import barcode_frame, read_barcode, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import shared_fixture
from PIL import Image

from aha.errors import UserError
from aha.video.frames import letterbox, read_image, resize_bilinear, turn_upright
from aha.video.packet_index import video_index
from aha.video.reader import iter_frames, probe, read_video

VIDEOS = ("landscape.mp4", "portrait.mp4")  # frames.json also tells of two videos that MMDuet publishes; they are not ours to copy


def numbers(frames) -> list[int]:
    return [read_barcode(image_CHW) for image_CHW in frames.frames_TCHW]


def golden_loaders(which: str):
    facts = json.loads(shared_fixture(f"reference/{which}/frames.json").read_text())
    for video in VIDEOS:
        for name, golden in facts[video]["loaders"].items():
            settings_ = dict(part.split("=") for part in name.split() if "=" in part)
            rate, limit = float(settings_["fps"]), int(settings_["max"]) if "max" in settings_ else None
            request = {"fps": rate} if rate else {"num_frames": limit}
            yield video, name, golden, {**request, "max_frames": limit, "rounding": "down" if name.startswith("train") else "up"}


# Against the golden data


@functools.lru_cache
def read_golden(video: str, **request):
    return read_video(shared_fixture(f"reference/videos/{video}"), sampling="reference", **request)


@pytest.mark.parametrize("which", ["mmduet", "aha"])
def test_frames_of_every_loader_of_the_reference(which):
    """Which frames: exact. Pixels: within 2 grey levels, means within 0.5 (another FFmpeg build decodes and scales a little differently)."""
    count = 0
    for video, name, golden, request in golden_loaders(which):
        frames = read_golden(video, **request)
        assert frames.frame_indices == golden["frame_indices"], (video, name)
        assert list(frames.frames_TCHW.shape) == golden["shape"] and frames.frames_TCHW.dtype == np.uint8
        for probe_ in golden["values"]:
            value = int(frames.frames_TCHW[probe_["frame"], probe_["c"], probe_["y"], probe_["x"]])
            assert abs(value - probe_["value"]) <= 2, (video, name, probe_)
        means_T = frames.frames_TCHW.reshape(len(frames.frame_indices), -1).mean(axis=1)
        np.testing.assert_allclose(means_T, golden["per_frame_mean"], atol=0.5)
        if "output_fps" in golden:
            assert frames.sample_fps == pytest.approx(golden["output_fps"], rel=1e-12)
            assert frames.duration == pytest.approx(golden["video_duration"], rel=1e-12)
        count += 1
    assert count == (14 if which == "mmduet" else 18)


@pytest.mark.parametrize("video, middle, last", [("landscape", 10, 19), ("portrait", 9, 17)])
def test_pixels_of_the_golden_frames(video, middle, last):
    frames = read_video(shared_fixture(f"reference/videos/{video}.mp4"), fps=1, sampling="reference")
    for k in (0, middle, last):
        golden_HWC = np.asarray(Image.open(shared_fixture(f"reference/frames/{video}_fps1_frame{k}.png"))).astype(int)
        assert np.abs(frames.frames_TCHW[k].transpose(1, 2, 0) - golden_HWC).max() <= 2


@pytest.mark.parametrize("video", VIDEOS)
def test_probe_agrees_with_the_container(video):
    golden = json.loads(shared_fixture("reference/aha/frames.json").read_text())[video]["container"]
    info = probe(shared_fixture(f"reference/videos/{video}"))
    assert (info.fps, info.frame_count, info.width, info.height) == (
        golden["fps"],
        golden["frame_count"],
        golden["width"],
        golden["height"],
    )
    assert info.codec == "h264" and info.rotation == 0 and not info.cut_off


def test_exact_sampling_differs_from_the_reference_where_its_sum_rounds():
    path = shared_fixture("reference/videos/landscape.mp4")
    assert read_video(path, fps=1).frame_indices == list(range(0, 500, 25))
    assert read_video(path, fps=1, sampling="reference").frame_indices[9] == 226


# Every codec and container: the frame that is returned is the frame that its index names

CODECS = [
    ("libx264", "mp4", {}),
    ("libx264", "mp4", {"gop": 250, "options": {"preset": "medium", "bf": "4", "x264-params": "b-pyramid=normal:scenecut=0"}}),
    ("libx264", "mp4", {"options": {"x264-params": "open-gop=1:scenecut=0"}}),
    ("libx264", "mp4", {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("libx264", "mkv", {}),
    ("libx264", "ts", {}),
    ("libx264", "ts", {"options": {"x264-params": "intra-refresh=1", "bf": "0"}}),
    ("libx264", "avi", {}),
    ("libx264", "h264", {"container": "h264"}),
    ("libx264", "mp4", {"pix_fmt": "yuv420p10le"}),
    ("libx264", "mp4", {"pix_fmt": "gray"}),
    ("libx264", "mp4", {"pix_fmt": "yuv444p", "width": 179, "height": 95}),
    ("libx265", "mp4", {}),
    ("libx265", "ts", {}),
    ("libvpx", "webm", {}),
    ("libvpx-vp9", "webm", {}),
    ("libsvtav1", "mp4", {}),
    ("mpeg4", "avi", {}),
    ("mpeg2video", "mpg", {"container": "mpeg"}),
    ("mjpeg", "mov", {"pix_fmt": "yuvj420p"}),
    ("prores_ks", "mov", {"pix_fmt": "yuv422p10le"}),
    ("png", "mov", {"pix_fmt": "rgba", "alpha": True}),
    ("gif", "gif", {"pix_fmt": "rgb8"}),
]


@pytest.mark.parametrize("codec, suffix, options", CODECS, ids=lambda x: str(x)[:60])
def test_frames_are_the_ones_that_are_named(tmp_path, codec, suffix, options):
    path = write_video(tmp_path / f"video.{suffix}", codec, **options)
    assert probe(path).frame_count == 50 and probe(path).fps == 25 and probe(path).duration == pytest.approx(2)
    for request in (
        {},
        {"fps": 4},
        {"fps": 10, "threads": 4},
        {"fps": 3, "start": 0.7, "threads": 1},
        {"num_frames": 7},
        {"fps": 1, "start": 1.9},
    ):
        frames = read_video(path, resize=False, **request)
        assert numbers(frames) == frames.frame_indices, request
    assert read_video(path, fps=4).frame_indices == [0, 7, 13, 19, 25, 32, 38, 44]


def test_variable_frame_rate_and_times_are_exact(tmp_path):
    gaps = [Fraction(n, 128) for n in (4, 4, 9, 1, 40, 2, 2, 30, 5, 64, 3, 3, 17, 8, 1, 1, 90, 6)]
    times = [sum(gaps[:i], Fraction(0)) for i in range(len(gaps))]
    path = write_video(tmp_path / "vfr.mkv", "ffv1", count=len(times), times=times)
    path_mp4 = write_video(tmp_path / "vfr.mp4", "libx264", count=len(times), times=times)
    for rate in (1, 5, 8, Fraction(30000, 1001)):
        frames = read_video(path_mp4, fps=rate, resize=False)
        expected, usual = [], statistics.median(b - a for a, b in zip(times, times[1:]))
        while (sample := len(expected) / Fraction(rate)) <= times[-1]:
            following = next(i for i, t in enumerate(times) if t >= sample)
            expected.append(following if times[following] - sample <= usual else following - 1)  # in a longer gap the one on screen
        assert frames.frame_indices == expected == numbers(frames)
        assert frames.times == [float(k / Fraction(rate)) for k in range(len(expected))]
        assert frames.frame_times == [max(float(times[i]), time) for i, time in zip(expected, frames.times)]
    assert read_video(path).frame_times == pytest.approx([float(t) for t in times], abs=6e-4)  # Matroska rounds to milliseconds


def test_clock_starts_at_the_first_frame(tmp_path):
    path = write_video(tmp_path / "late.mp4", "libx264", count=30, times=[Fraction(7, 2) + Fraction(i, 25) for i in range(30)])
    assert video_index(path).first_pts != 0 or video_index(path).pts[0] == 0
    assert read_video(path, fps=5).frame_indices == [0, 5, 10, 15, 20, 25]
    transport = write_video(tmp_path / "late.ts", "libx264")  # MPEG-TS starts at 1.4 s
    assert video_index(transport).first_pts > 0
    assert read_video(transport, fps=5).frame_indices == list(range(0, 50, 5))


# Picture geometry and colour


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_rotation_flag_is_applied(tmp_path, angle):
    path = write_video(tmp_path / "turned.mp4", "libx264", count=3, rotation=angle)  # counter-clockwise
    info = probe(path)
    assert info.rotation == -angle % 360
    assert (info.width, info.height) == ((96, 176) if angle in (90, 270) else (176, 96))
    shown = read_video(path, resize=False).frames_TCHW[0].transpose(1, 2, 0)
    expected = np.rot90(barcode_frame(0), angle // 90)
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 12


def test_display_matrix_flips():
    image_HWC = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    one = 1 << 16
    assert (turn_upright(image_HWC, (-one, 0, 0, 0, one, 0, 0, 0, 0)) == image_HWC[:, ::-1]).all()
    assert (turn_upright(image_HWC, (0, one, 0, one, 0, 0, 0, 0, 0)) == image_HWC.transpose(1, 0, 2)).all()
    assert (turn_upright(image_HWC, (one, 900, 0, -900, one, 0, 0, 0, 0)) == image_HWC).all()


@pytest.mark.parametrize("width, height, box", [(320, 240, (48, 0, 288, 384)), (236, 320, (0, 50, 384, 283)), (384, 384, (0, 0, 384, 384)),
                                                (57, 101, (0, 84, 384, 216)), (7, 2000, (0, 191, 384, 1)), (1, 1, (0, 0, 384, 384))])  # fmt: skip
def test_letterbox_geometry(width, height, box):
    boxed = letterbox(np.full((height, width, 3), 200, np.uint8))
    top, left, new_height, new_width = box
    expected = np.zeros((384, 384, 3), np.uint8)
    expected[top : top + new_height, left : left + new_width] = 200
    assert np.abs(boxed.astype(int) - expected).max() <= 1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_resize_is_bilinear_with_aligned_centres(height, width, new_height, new_width, seed):
    image_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def axis(source, target):
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(position).astype(int)
        return low, np.minimum(low + 1, source - 1), position - low

    y0, y1, fy = axis(height, new_height)
    x0, x1, fx = axis(width, new_width)
    rows = image_HWC[y0] * (1 - fy)[:, None, None] + image_HWC[y1] * fy[:, None, None]
    exact = rows[:, x0] * (1 - fx)[:, None] + rows[:, x1] * fx[:, None]
    assert np.abs(resize_bilinear(image_HWC, new_height, new_width) - exact).max() < 1.3


def test_resize_is_bit_exact_with_opencv():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not needed by the project; it is only compared with")
    rng = np.random.default_rng(1)
    for height, width, new_height, new_width in (
        (240, 320, 288, 384),
        (720, 1280, 216, 384),
        (101, 57, 384, 216),
        (384, 384, 384, 384),
        (3, 700, 1, 384),
    ):
        image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert (resize_bilinear(image_HWC, new_height, new_width) == cv2.resize(image_HWC, (new_width, new_height))).all()


def test_pixels_that_are_not_square(tmp_path):
    path = write_video(tmp_path / "wide.mp4", "libx264", count=2, pixel_aspect=Fraction(2, 1))  # 176x96 stored, 352x96 shown
    shown = read_video(path, fps=25).frames_TCHW[0]
    assert shown[:, : 384 // 2 - 53].max() == 0 and shown[:, 384 // 2 - 50 : 384 // 2 + 50].mean() > 40
    as_reference = read_video(path, fps=25, sampling="reference").frames_TCHW[0]
    assert as_reference[:, 384 // 2 - 70].mean() > 40


def test_grey_and_ten_bit_keep_their_brightness(tmp_path):
    plain = read_video(write_video(tmp_path / "a.mp4", "libx264", count=2)).frames_TCHW.astype(int)
    ten = read_video(write_video(tmp_path / "b.mp4", "libx264", count=2, pix_fmt="yuv420p10le")).frames_TCHW
    grey = read_video(write_video(tmp_path / "c.mp4", "libx264", count=2, pix_fmt="gray")).frames_TCHW
    assert np.abs(plain - ten).mean() < 3
    assert np.abs(plain.mean(axis=1) - grey.mean(axis=1)).mean() < 25 and (grey[:, 0] == grey[:, 2]).all()


# Other sources


def test_list_of_images(tmp_path):
    picture = barcode_frame(5)
    paths = [tmp_path / name for name in ("0.png", "1.png", "2.png", "3.jpg", "4.png", "5.bmp")]
    Image.fromarray(picture).save(paths[0])
    Image.fromarray(picture[..., 0]).save(paths[1])  # grey
    Image.fromarray(np.dstack([picture, np.full(picture.shape[:2], 7, np.uint8)])).save(paths[2])  # alpha
    Image.fromarray(picture).save(paths[3], quality=98)
    Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(paths[4])  # 16-bit grey
    Image.fromarray(picture).convert("P").save(paths[5])
    frames = read_video(paths, source_fps=2, resize=False)
    assert frames.frame_times == frames.times == [0, 0.5, 1, 1.5, 2, 2.5] and frames.duration == 3
    assert (frames.frames_TCHW[0].transpose(1, 2, 0) == picture).all() and (frames.frames_TCHW[2] == frames.frames_TCHW[0]).all()
    assert (frames.frames_TCHW[1] == picture[..., 0]).all() and (frames.frames_TCHW[4] == picture[..., 0]).all()
    assert np.abs(frames.frames_TCHW[3].astype(int) - frames.frames_TCHW[0]).mean() < 8
    assert numbers(frames) == [5] * 6
    assert read_video([str(path) for path in paths], source_fps=2, fps=1).frame_indices == [0, 2, 4]


def test_image_orientation_and_bad_images(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(barcode_frame(1)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").shape == (176, 96, 3)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((shared_png := tmp_path / "x.png") and b"")
    Image.fromarray(barcode_frame(1)).save(shared_png)
    (tmp_path / "cut.png").write_bytes(shared_png.read_bytes()[:900])
    for name in ("text.png", "cut.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_video([tmp_path / name], source_fps=1)


def test_arrays_in_both_layouts():
    frames_THWC = np.stack([barcode_frame(n) for n in range(6)])
    for array in (frames_THWC, np.ascontiguousarray(frames_THWC.transpose(0, 3, 1, 2))):
        frames = read_video(array, source_fps=3, fps=1, resize=False)
        assert frames.frame_indices == numbers(frames) == [0, 3]
    assert read_video(frames_THWC, source_fps=3).frames_TCHW.shape == (6, 3, 384, 384)


@pytest.mark.parametrize(
    "array, says", [(np.zeros((2, 4, 4, 3)), "dtype uint8"), (np.zeros((4, 4, 3), np.uint8), "shape"), (np.zeros((2, 4, 4, 4), np.uint8), "shape"),
                    (np.zeros((0, 4, 4, 3), np.uint8), "no pixels")])  # fmt: skip
def test_arrays_that_are_no_frames(array, says):
    with pytest.raises(UserError, match=says):
        read_video(array, source_fps=1)


# Sampling


@given(
    st.lists(st.integers(1, 4000), min_size=0, max_size=40), st.fractions(Fraction(1, 10), 60, max_denominator=1001),
    st.integers(0, 3), st.one_of(st.none(), st.integers(4, 9)), st.one_of(st.none(), st.integers(1, 12)),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_sample_k_is_the_first_frame_at_or_after_its_time_or_the_one_on_screen(gaps, rate, start, end, limit):
    from aha.video.reader import _choose_by_time, _Timeline

    ticks = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    unit = Fraction(1, 1000)
    timeline = _Timeline("video", ticks, unit, Fraction(25), ticks[-1] * unit + Fraction(1, 25), 0, False)
    try:
        choice = _choose_by_time(timeline, rate, None, limit, start, end, "up")
    except UserError:
        assert ticks[-1] * unit < start
        return
    for k, (index, time) in enumerate(zip(choice.frame_indices, choice.times)):
        following = bisect.bisect_left(ticks, (start + k / rate) / unit)
        waits = ticks[following] - (start + k / rate) / unit > timeline.usual_ticks
        assert index == (following - 1 if waits and following else following)
        assert time == float(start + k / rate)
    following = start + len(choice.times) / rate  # nothing is left out at the end
    assert len(choice.times) == limit or following > ticks[-1] * unit or (end is not None and following >= end)


@pytest.mark.parametrize("count", [1, 2, 7, 49, 50, 80])
def test_number_of_frames(tmp_path, count):
    path = write_video(tmp_path / "video.mp4", "libx264")
    frames = read_video(path, num_frames=count, resize=False)
    assert len(frames.frame_indices) == count and frames.sample_fps == count / 2
    assert frames.frame_indices == [min(math.ceil(Fraction(k * 50, count)), 49) for k in range(count)] == numbers(frames)


def test_start_end_and_limits(tmp_path):
    path = write_video(tmp_path / "video.mp4", "libx264")
    assert read_video(path, fps=5, start=0.5, end=1.1).frame_indices == [13, 18, 23]
    assert read_video(path, fps=5, start=0.4, end=1.0).times == [0.4, 0.6, 0.8]
    assert read_video(path, fps=5, max_frames=3).frame_indices == [0, 5, 10]
    assert read_video(path, start=1.9).frame_indices == [48, 49]
    assert read_video(path, num_frames=4, start=1, end=2).frame_indices == [25, 32, 38, 44]
    assert read_video(path, fps=0.3).frame_indices == [0]
    assert read_video(path, fps=100, end=0.1).frame_indices == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


@pytest.mark.parametrize("arguments", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": 1, "num_frames": 2}, {"num_frames": 0}, {"max_frames": 0},
                                       {"start": 2.5}, {"start": 1, "end": 1}, {"start": -1}, {"sampling": "exact"}, {"backend": "opencv"},
                                       {"sampling": "reference"}, {"source_fps": 3}, {"rounding": "even"}, {"size": 0}])  # fmt: skip
def test_arguments_out_of_range(tmp_path, arguments):
    path = write_video(tmp_path / "video.mp4", "mpeg4")
    with pytest.raises(UserError) as error:
        read_video(path, **arguments)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_iter_frames_gives_the_same_frames_one_by_one(tmp_path):
    path = write_video(tmp_path / "video.mp4", "libx264")
    frames = read_video(path, fps=7)
    for k, frame in enumerate(iter_frames(path, fps=7)):
        assert (frame.frame_index, frame.time, frame.frame_time) == (frames.frame_indices[k], frames.times[k], frames.frame_times[k])
        assert (frame.frame_CHW == frames.frames_TCHW[k]).all()
    assert k == len(frames.times) - 1


@pytest.mark.parametrize("suffix", ["mp4", "avi"])  # by time stamps, by count
def test_decoded_pictures_do_not_pile_up(tmp_path, suffix):
    path = write_video(tmp_path / f"video.{suffix}", "libx264", rotation=90 if suffix == "mp4" else None)
    gc.collect()
    gc.disable()  # what is not freed by counting references stays
    try:
        for _ in iter_frames(path):
            pass
        assert sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()) <= 2
    finally:
        gc.enable()


def test_reading_in_a_forked_worker(tmp_path):
    path = write_video(tmp_path / "video.mp4", "libx264")
    here = read_video(path, fps=5, threads=2).frames_TCHW
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        os.write(send, hashlib.sha256(read_video(path, fps=5, threads=2).frames_TCHW.tobytes()).digest())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        assert pipe.read() == hashlib.sha256(here.tobytes()).digest()
    os.waitpid(child, 0)


# The other decoders


def backend_or_skip(backend: str) -> str:
    if backend == "decord":
        pytest.importorskip("decord", reason="decord is not installed")
    else:
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            pytest.skip(f"torchcodec does not load ({str(error).splitlines()[0]})")
    return backend


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("codec, suffix, options", [("libx264", "mp4", {}), ("libx264", "mkv", {"gop": 100}), ("libvpx-vp9", "webm", {}),
                                                    ("libx264", "mp4", {"rotation": 90}), ("libx264", "mp4", {"pix_fmt": "yuv420p10le"})],
                         ids=str)  # fmt: skip
def test_other_backends_give_the_same_frames(tmp_path, backend, codec, suffix, options):
    path = write_video(tmp_path / f"video.{suffix}", codec, **options)
    ours, theirs = (read_video(path, fps=4, backend=name) for name in ("pyav", backend_or_skip(backend)))
    assert theirs.frame_indices == ours.frame_indices and theirs.times == ours.times
    assert np.abs(theirs.frames_TCHW.astype(int) - ours.frames_TCHW).mean(axis=(1, 2, 3)).max() < 3


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize(
    "codec, suffix", [("libx265", "mp4"), ("libx264", "ts"), ("mpeg2video", "vob"), ("libx264", "avi"), ("libx264", "h264")]
)
def test_backends_refuse_what_they_get_wrong(tmp_path, backend, codec, suffix):
    path = write_video(tmp_path / f"video.{suffix}", codec)
    if (backend, suffix) == ("torchcodec", "mp4"):
        frames = read_video(path, fps=4, backend=backend_or_skip(backend), resize=False)
        assert numbers(frames) == frames.frame_indices
        return
    with pytest.raises(UserError, match='default backend="pyav"'):
        read_video(path, fps=4, backend=backend)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_backend_that_is_not_installed(tmp_path, monkeypatch, backend):
    path = write_video(tmp_path / "video.mp4", "mpeg4")
    monkeypatch.setitem(__import__("sys").modules, backend, None)  # makes the import fail
    monkeypatch.setitem(__import__("sys").modules, f"{backend}.decoders", None)
    with pytest.raises(UserError, match=rf"pip install 'aha-video\[{backend}\]'"):
        read_video(path, fps=4, backend=backend)


# Files that are no videos, or broken ones; see also test_video_damage.py


def test_files_that_cannot_be_read_name_the_cause(tmp_path):
    audio = tmp_path / "sound.m4a"
    with av.open(str(audio), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode()):
            output.mux(packet)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("This is no video.\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n#EXT-X-ENDLIST\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, says in {"sound.m4a": "no video stream", "empty.mp4": "0 bytes", "text.mp4": "no video or damaged", "missing.mp4": "check the path",
                       "list.m3u8": "is a playlist, not a video", "pipe.mp4": "not a file", "": "not a file"}.items():  # fmt: skip
        with pytest.raises(UserError, match=says) as error:
            read_video(tmp_path / name, fps=1)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_one_frame_and_no_frame(tmp_path):
    one = write_video(tmp_path / "one.mp4", "libx264", count=1)
    assert probe(one).frame_count == 1 and read_video(one, fps=1).frame_indices == [0]
    assert read_video(one, num_frames=3).frame_indices == [0, 0, 0]
    none = write_video(tmp_path / "none.mkv", "libx264", count=0)
    with pytest.raises(UserError, match="no frames|cannot be opened"):
        read_video(none, fps=1)


def test_cut_off_file_says_how_far_it_can_be_read(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", "libx264", muxer_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(os.path.getsize(whole) * 0.7)])
    with pytest.raises(UserError, match=r"cut\.mp4 is cut off or damaged: frame \d+ and the following are missing .*end="):
        read_video(cut, fps=5)
    info = probe(cut)
    assert info.cut_off and 20 < info.frame_count < 45
    frames = read_video(cut, end=info.duration, resize=False)
    assert numbers(frames) == frames.frame_indices == list(range(info.frame_count))
    assert read_video(cut, fps=5, max_frames=4).frame_indices == [0, 5, 10, 15]


def test_damaged_frame_is_named(tmp_path):
    path = write_video(tmp_path / "holes.mp4", "png", pix_fmt="rgb24")  # every frame stands alone: damage to one is damage to one
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = list(container.demux(container.streams.video[0]))[20]
        data[packet.pos + 20 : packet.pos + packet.size] = bytes(packet.size - 20)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"holes\.mp4: frame 20 \(at 0\.800 s\) cannot be decoded.*end=0\.76"):
        read_video(path, fps=5)
    assert read_video(path, fps=5, end=0.76).frame_indices == [0, 5, 10, 15]
    assert read_video(path, fps=5, start=0.9).frame_indices == [23, 28, 33, 38, 43, 48]


def test_frames_that_do_not_fit_into_memory():
    array = np.zeros((1, 1000, 1000, 3), np.uint8)
    with pytest.raises(UserError, match="iter_frames"):
        read_video(np.broadcast_to(array, (500_000, 1000, 1000, 3)), source_fps=25, resize=False)  # 1.4 TiB
