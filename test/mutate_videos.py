"""What the video reader makes of broken files: generate small videos of several codecs, damage them, read every one.

    python test/mutate_videos.py --count 400 --seed 1

Every file is read as a file and through a pipe, and its clock is damaged too (joined recordings, PES time stamps moved from a packet on).
Prints one line for each file (kind of damage, codec, seconds, what the read gave) and a table. Exit code 1 if any read ended in something
other than frames or a UserError, took longer than --limit seconds (a hang ends the process), or gave a frame with another number than its
index says in a file whose pictures were not touched (intact, renamed or cut off; every frame carries its number).
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import itertools
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
from barcode_videos import read_barcode, write_video

from aha.errors import UserError
from aha.video.reader import read_video
from aha.watch.sources import read_pipe

FRAMES = 48
SEEDS = {  # name: (suffix, options of write_video)
    "h264 mp4": (".mp4", {"codec": "libx264"}),
    "h264 mp4, index first": (".mp4", {"codec": "libx264", "muxer_options": {"movflags": "faststart"}}),
    "h264 fragmented mp4": (".mp4", {"codec": "libx264", "muxer_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264 mkv": (".mkv", {"codec": "libx264"}),
    "h264 ts": (".ts", {"codec": "libx264"}),
    "h264 avi": (".avi", {"codec": "libx264"}),
    "h264 10-bit mp4": (".mp4", {"codec": "libx264", "pix_fmt": "yuv420p10le"}),
    "hevc mp4": (".mp4", {"codec": "libx265"}),
    "hevc ts": (".ts", {"codec": "libx265"}),
    "vp8 webm": (".webm", {"codec": "libvpx"}),
    "vp9 webm": (".webm", {"codec": "libvpx-vp9"}),
    "av1 mp4": (".mp4", {"codec": "libsvtav1"}),
    "mpeg4 avi": (".avi", {"codec": "mpeg4"}),
    "mpeg4 mp4": (".mp4", {"codec": "mpeg4"}),
    "mpeg2 mpg": (".mpg", {"codec": "mpeg2video", "container": "mpeg"}),
    "mjpeg avi": (".avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "mjpeg mov": (".mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ffv1 mkv": (".mkv", {"codec": "ffv1"}),
    "gif": (".gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "flv": (".flv", {"codec": "flv"}),
}
PICTURES_UNTOUCHED = {"intact", "wrong extension", "cut off", "cut near the end"}


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode()):
            output.mux(packet)


def mutations(data: bytes, suffix: str, rng: np.random.Generator) -> dict[str, tuple[str, bytes]]:
    """Kind of damage -> (suffix, contents)."""
    size = len(data)
    array = np.frombuffer(data, np.uint8)

    def flip(count: int, until: int) -> bytes:
        flipped = array.copy()
        flipped[rng.integers(0, until, count)] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
        return flipped.tobytes()

    begin = int(rng.integers(0, size))
    length = int(rng.integers(1, max(2, size // 4)))
    zeroed = array.copy()
    zeroed[begin : begin + length] = 0
    return {
        "intact": (suffix, data),
        "wrong extension": (str(rng.choice([s for s in (".mp4", ".avi", ".txt", ".mp3", ".jpg", "") if s != suffix])), data),
        "cut off": (suffix, data[: int(rng.integers(1, size))]),
        "cut near the end": (suffix, data[: size - int(rng.integers(1, max(2, size // 10)))]),
        "beginning missing": (suffix, data[int(rng.integers(1, size)) :]),
        "one bit flipped": (suffix, flip(1, size)),
        "20 bits flipped": (suffix, flip(20, size)),
        "200 bits flipped": (suffix, flip(200, size)),
        "header bits flipped": (suffix, flip(6, min(size, 700))),
        "block of zeros": (suffix, zeroed.tobytes()),
        "block left out": (suffix, data[:begin] + data[begin + length :]),
        "twice in one file": (suffix, data + data),
        "joined in the middle": (suffix, data[: int(rng.integers(1, size))] + data[int(rng.integers(1, size)) :]),
        "clock set anew": (suffix, clock_set_anew(data, rng) if suffix == ".ts" else data + data[size // 2 :]),
        "zero bytes": (suffix, b""),
        "text": (suffix, b"This is no video.\n" * 50),
        "random bytes": (suffix, rng.integers(0, 256, 5000).astype(np.uint8).tobytes()),
        "playlist of other files": (suffix, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
    }


def clock_set_anew(data: bytes, rng: np.random.Generator) -> bytes:
    """An MPEG-TS whose time stamps are moved by any number, one to three times, each from some packet on."""
    stream = bytearray(data)
    for first in rng.integers(0, len(data) // 188, int(rng.integers(1, 4))):
        offset = int(rng.integers(0, 1 << 33)) if rng.random() < 0.5 else int(rng.integers(-300_000, 300_000))
        for packet in range(int(first), len(data) // 188):
            start = stream.find(b"\0\0\1\xe0", packet * 188, packet * 188 + 170)  # a PES packet of video
            if start < 0:
                continue
            for k in range(bin(stream[start + 7] >> 6).count("1")):  # pts, then dts, 33 bits each in 5 bytes
                at = start + 9 + 5 * k
                value = int.from_bytes(stream[at : at + 5], "big")
                stamp = (value >> 33 & 7) << 30 | (value >> 17 & 0x7FFF) << 15 | value >> 1 & 0x7FFF
                stamp = (stamp + offset) % (1 << 33)
                moved = (
                    (value >> 36) << 36 | (stamp >> 30) << 33 | 1 << 32 | (stamp >> 15 & 0x7FFF) << 17 | 1 << 16 | (stamp & 0x7FFF) << 1 | 1
                )
                stream[at : at + 5] = moved.to_bytes(5, "big")
    return bytes(stream)


def read_live(contents: bytes) -> str:
    """What `aha watch -` makes of the file: "" or what should not have come out."""
    sys.stdin = SimpleNamespace(buffer=io.BytesIO(contents))
    try:
        times = [frame.time for frame in itertools.islice(read_pipe(8.0, None, 25.0), 1000)]
    except (UserError, av.error.FFmpegError) as error:
        return "" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "" if times == sorted(set(times)) else "its times do not ascend"


def read(path: Path, kind: str) -> tuple[str, str]:
    """(outcome, detail) of reading one file: outcome is "frames", "error", "WRONG FRAME" or "CRASH"."""
    try:
        frames = read_video(path, fps=8, resize=False)
    except UserError as error:
        cure = re.search(r"end=(\d+\.\d+)", str(error))
        if cure and float(cure[1]) > 0 and kind in PICTURES_UNTOUCHED:  # what the sentence advises must work
            try:
                frames = read_video(path, fps=8, resize=False, end=float(cure[1]))
            except UserError as second:
                return "CRASH", f"the advice failed: {error} -> {second}"
            if not numbers_agree(frames):
                return "WRONG FRAME", f"{frames.frame_indices} shows {[read_barcode(image_CHW) for image_CHW in frames.frames_TCHW]}"
        return "error", str(error).replace(str(path), path.name)
    except Exception as error:  # noqa: BLE001  (whatever else comes out is what this tool looks for)
        traceback.print_exc()
        return "CRASH", f"{type(error).__name__}: {error}"
    if kind in PICTURES_UNTOUCHED and not numbers_agree(frames):
        return "WRONG FRAME", f"{frames.frame_indices} shows {[read_barcode(image_CHW) for image_CHW in frames.frames_TCHW]}"
    return "frames", f"{len(frames.frame_indices)} of {frames.frame_count}"


def numbers_agree(frames) -> bool:
    return [read_barcode(image_CHW) for image_CHW in frames.frames_TCHW] == frames.frame_indices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="number of files to read")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--limit", type=float, default=120, help="seconds that one read may take")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    outcomes: dict[str, Counter] = {}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seeds = {
            name: write_video(work / f"seed_{i}{suffix}", count=FRAMES, **options)
            for i, (name, (suffix, options)) in enumerate(SEEDS.items())
        }
        write_audio(work / "audio.m4a")
        jobs = [("audio only", "aac m4a", ".mp4", (work / "audio.m4a").read_bytes())]
        names, turn = list(seeds), 0
        while len(jobs) < arguments.count:  # every kind meets another codec each time round
            kinds = mutations(seeds[names[0]].read_bytes(), ".mp4", rng)
            for k, kind in enumerate(kinds):
                name = names[(turn + k * 7) % len(names)]
                suffix, contents = mutations(seeds[name].read_bytes(), SEEDS[name][0], rng)[kind]
                jobs.append((kind, name, suffix, contents))
            turn += 1
        for number, (kind, name, suffix, contents) in enumerate(jobs[: arguments.count]):
            path = work / f"{number:03d}{suffix}"
            path.write_bytes(contents)
            faulthandler.dump_traceback_later(arguments.limit, exit=True)  # a hang inside FFmpeg cannot be interrupted otherwise
            begin = time.perf_counter()
            outcome, detail = read(path, kind)
            if live := read_live(contents):
                outcome, detail = "CRASH", f"as a stream: {live}"
            faulthandler.cancel_dump_traceback_later()
            outcomes.setdefault(kind, Counter())[outcome] += 1
            bad += outcome in ("CRASH", "WRONG FRAME")
            print(f"{number:3d}  {kind:24s} {name:22s} {time.perf_counter() - begin:5.2f} s  {outcome}: {detail}")
            path.unlink()
    print(f"\n{'kind':24s} {'files':>5s} {'frames':>7s} {'error':>6s} {'wrong frame':>12s} {'crash':>6s}")
    for kind, counter in outcomes.items():
        print(
            f"{kind:24s} {sum(counter.values()):5d} {counter['frames']:7d} {counter['error']:6d} {counter['WRONG FRAME']:12d} {counter['CRASH']:6d}"
        )
    total = sum(outcomes.values(), Counter())
    print(f"{'all':24s} {sum(total.values()):5d} {total['frames']:7d} {total['error']:6d} {total['WRONG FRAME']:12d} {total['CRASH']:6d}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
