"""python -m aha.score: one file, a benchmark, shards, a kill in the middle."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import REPO, shared_fixture
from PIL import Image
from training_data import write_tvsum
from waiting import running, wait_for

from aha import cli, score
from aha.conversation import load_tokenizer
from aha.core.environment import held
from aha.core.fusion import Fusion
from aha.core.prediction import read_predictions
from aha.data import check
from aha.data.mixture import build_mixture
from aha.errors import UserError
from aha.models import AhaModel
from aha.scoring import ablate
from aha.scoring.config import ScoreConfig
from aha.scoring.dataset import Item, shard
from aha.scoring.parts import part_writer, read_parts
from aha.video import reader
from aha.video.frames import image_files


@pytest.fixture(scope="module")
def model_flags() -> list[str]:
    folder = shared_fixture("reference")
    return ["--llm_pretrained", str(folder / "llava-onevision-qwen2-tiny-ov"), "--lora_pretrained", str(folder / "aha-adapter")]


def official_tvsum(root: Path, videos: int) -> Path:
    """A small data set in the folders of the official archive."""
    archive = root / "ydata-tvsum50-v1_1"
    write_tvsum(archive, videos, seconds=4)
    (archive / "data").mkdir()
    for name in ("anno", "info"):
        (archive / f"{name}.tsv").rename(archive / "data" / f"ydata-tvsum50-{name}.tsv")
    return root


@pytest.fixture(scope="module")
def tvsum(tmp_path_factory) -> Path:
    return official_tvsum(tmp_path_factory.mktemp("tvsum"), 10)


@pytest.fixture(scope="module")
def whole(tvsum, model_flags, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("whole") / "scores.json"
    score.main([*model_flags, "--dataset", "tvsum", "--data_root", str(tvsum), "--frame_fps", "2", "--output", str(output)])
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]  # no parts left behind
    return json.loads(output.read_text())


def test_one_video(model_flags, tmp_path):
    video, output = shared_fixture("reference/videos/landscape.mp4"), tmp_path / "scores.json"
    queries = ["--query", "first", "--query", "second", "--query_time", "0", "--query_time", "7.5"]
    score.main([*model_flags, "--video", str(video), *queries, "--chunk_frames", "3", "--output", str(output)])
    (entry,) = json.loads(output.read_text())
    assert (entry["video_uuid"], entry["video_duration"], entry["frame_fps"]) == ("landscape", 20.0, 1.0)
    assert entry["true_frames_list"] == list(range(0, 500, 25))
    assert [row["time"] for row in entry["debug_data"]] == list(range(20))
    assert set(entry["debug_data"][0]) == {"time", "informative_score", "relevance_score", "uncertainty_score"}
    score.main([*model_flags, "--video", str(video), "--query", "first", "--output", str(output)])
    (alone,) = json.loads(output.read_text())
    same = [a == pytest.approx(b, abs=1e-5) for a, b in zip(entry["debug_data"], alone["debug_data"])]
    assert all(same[:8]) and not any(same[8:])  # the second query counts from the first frame at or after 7.5 s


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Six images, 1.png to 10.png with gaps: text order is not their order."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "frames" / f"{k}.png" for k in (1, 2, 3, 9, 10, 11)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(path)
    (tmp_path / "frames" / "notes.txt").write_text("not a picture")
    return paths


def test_images_are_frames(model_flags, pictures, tmp_path):
    output = tmp_path / "scores.json"
    flags = [*model_flags, "--frame_fps", "2", "--query", "q", "--output", str(output), "--video"]
    score.main([*flags, *map(str, pictures)])
    (listed,) = json.loads(output.read_text())
    assert (listed["video_uuid"], listed["video_duration"], listed["frame_fps"]) == ("1", 3.0, 2.0)
    assert listed["true_frames_list"] == list(range(6)) and [row["time"] for row in listed["debug_data"]] == [k / 2 for k in range(6)]
    score.main([*flags, str(pictures[0].parent)])
    (folder,) = json.loads(output.read_text())
    assert folder == {**listed, "video_uuid": "frames"} and len({row["relevance_score"] for row in folder["debug_data"]}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda paths: Image.new("RGB", (8, 8)).save(paths[3]), "must have one size, but .*1.png is 32x24 and .*9.png is 8x8"),
        (lambda paths: paths[2].write_bytes(b"no picture"), "3.png cannot be read"),
        (lambda paths: paths.append(paths[0].parent / "none.png"), "none.png does not exist"),
        (lambda paths: paths.append(paths[0].parent / "notes.txt"), "notes.txt is no image .*one video file, or images only"),
        (lambda paths: paths.__setitem__(slice(None), [REPO / "configs"]), "configs holds no image"),
    ],
)
def test_images_that_make_no_video_are_one_sentence(pictures, change, message):
    change(pictures)
    with pytest.raises(UserError, match=message) as error:
        image_files(pictures)
    assert "\n" not in str(error.value)
    assert image_files(["a.mp4"]) is None


def test_auto_frame_rate_spreads_the_frames(model_flags, tmp_path):
    video, output = shared_fixture("reference/videos/landscape.mp4"), tmp_path / "scores.json"
    score.main([*model_flags, "--video", str(video), "--frame_fps", "0", "--max_num_frames", "5", "--output", str(output)])
    (entry,) = json.loads(output.read_text())
    assert entry["true_frames_list"] == [0, 100, 200, 300, 400] and entry["frame_fps"] == 0.25


def test_dataset_file_is_readable_by_the_evaluation(whole, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(whole))
    predictions = list(read_predictions(path))
    assert len(predictions) == 10 and all(len(p.samples(Fusion()).scores) == 8 and not p.trained_on for p in predictions)


def test_folds_limit_and_trained_on(model_flags, tvsum, whole, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in Path(model_flags[3]).iterdir():
        (adapter / file.name).symlink_to(file)
    output = tmp_path / "scores.json"
    flags = [*model_flags[:3], str(adapter), "--dataset", "tvsum", "--data_root", str(tvsum), "--frame_fps", "2", "--output", str(output)]
    score.main([*flags, "--fold", "1"])
    test_ids = {entry["video_uuid"] for entry in json.loads(output.read_text())}
    (adapter / "trained_on_videos.json").write_text(
        json.dumps([entry["video_uuid"] for entry in whole if entry["video_uuid"] not in test_ids])
    )
    capsys.readouterr()
    score.main([*flags, "--fold", "1"])
    assert "TRAINED ON" not in capsys.readouterr().err
    assert not any("trained_on" in entry for entry in json.loads(output.read_text()))
    score.main([*flags, "--fold", "1", "--split", "train", "--limit", "3"])
    assert "TRAINED ON 3 of these 3 videos" in capsys.readouterr().err
    entries = json.loads(output.read_text())
    assert len(entries) == 3 and all(entry["trained_on"] is True for entry in entries)
    assert not test_ids & {entry["video_uuid"] for entry in entries}


def test_query_map_replaces_titles(model_flags, tvsum, whole, tmp_path):
    queries, output = tmp_path / "queries.json", tmp_path / "scores.json"
    queries.write_text(json.dumps({entry["video_uuid"]: "something else" for entry in whole}))
    flags = [*model_flags, "--dataset", "tvsum", "--data_root", str(tvsum), "--frame_fps", "2", "--output", str(output)]
    score.main([*flags, "--query_map", str(queries), "--limit", "1"])
    (entry,) = json.loads(output.read_text())
    assert entry["query"] == "something else" and entry["debug_data"] != whole[0]["debug_data"]
    queries.write_text("{}")
    with pytest.raises(UserError, match="has no query for video"):
        score.main([*flags, "--query_map", str(queries)])


def test_stored_features_give_the_same_scores_without_the_tower(model_flags, tvsum, whole, tmp_path, monkeypatch):
    output = tmp_path / "scores.json"
    flags = [*model_flags, "--dataset", "tvsum", "--data_root", str(tvsum), "--frame_fps", "2", "--limit", "3", "--output", str(output)]
    flags += ["--feature_cache", str(tmp_path / "features"), "--readers", "2"]
    score.main(flags)
    first = json.loads(output.read_text())
    assert first == whole[:3] and len(list(tmp_path.glob("features/*/*/*.safetensors"))) == 3

    def no_tower(self, frames):
        raise AssertionError("the tower ran")

    monkeypatch.setattr(AhaModel, "tower_features", no_tower)
    score.main([*flags, "--chunk_frames", "3"])
    for entry, wanted in zip(json.loads(output.read_text()), first):
        assert entry["true_frames_list"] == wanted["true_frames_list"]
        assert all(row == pytest.approx(expected, abs=1e-5) for row, expected in zip(entry["debug_data"], wanted["debug_data"]))


def test_unreadable_videos_are_listed(model_flags, tmp_path, capsys):
    official_tvsum(tmp_path, 5)
    videos = sorted(tmp_path.rglob("*.mp4"))
    videos[0].write_bytes(b"this is no video")
    videos[1].write_bytes(videos[1].read_bytes()[:-2000])
    output = tmp_path / "scores.json"
    score.main([*model_flags, "--dataset", "tvsum", "--data_root", str(tmp_path), "--output", str(output)])
    assert len(json.loads(output.read_text())) == 3
    skipped = json.loads((tmp_path / "scores.json.skipped.json").read_text())
    assert set(skipped) == {videos[0].stem, videos[1].stem}
    assert "2 videos left out" in capsys.readouterr().err


def test_shards_are_disjoint_complete_and_balanced():
    items = [Item(f"v{i}", f"v{i}", "", float(7 * i % 50 + 1), ()) for i in range(40)]
    shards = [shard(items, rank, 3) for rank in range(3)]
    assert sorted(item.key for part in shards for item in part) == sorted(item.key for item in items)
    loads = [sum(item.duration for item in part) for part in shards]
    assert max(loads) - min(loads) <= 51
    assert all(a.duration >= b.duration for part in shards for a, b in zip(part, part[1:]))


def command(flags: list[str], tvsum: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "aha.score",
        *flags,
        "--dataset",
        "tvsum",
        "--data_root",
        str(tvsum),
        "--frame_fps",
        "2",
        "--output",
        str(output),
    ]


# the command, which waits for its end when three records are on disk
STOPS_AFTER_THREE = """
import sys, time
from contextlib import contextmanager
from aha import score
from aha.scoring import dataset

@contextmanager
def stopping(*given, real=dataset.part_writer):
    with real(*given) as write:
        left = [3]
        def write_and_stop(record):
            write(record)
            left[0] -= 1
            while not left[0]:
                time.sleep(1)
        yield write_and_stop

dataset.part_writer = stopping
score.main(sys.argv[1:])
"""


def test_killed_in_the_middle_then_resumed_by_other_ranks(model_flags, tvsum, whole, tmp_path, monkeypatch, capsys):
    output = tmp_path / "scores.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}"}
    words = command(model_flags, tvsum, output)
    words[1:3] = ["-c", STOPS_AFTER_THREE]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def written() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.parts-*/*"))

    wait_for(lambda: written() == 3 or process.poll() is not None, what="three videos are scored")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (parts,) = tmp_path.glob("*.parts-*")
    part = next(parts.iterdir())
    before = read_parts(parts)
    assert len(before) == 3 and not output.exists()
    part.write_bytes(part.read_bytes() + b'{"key": "cut o')  # what a kill in the middle of a line leaves
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # other ranks than before; rank 0 merges
        monkeypatch.setenv("RANK", rank)
        score.main(command(model_flags, tvsum, output)[3:])
    assert "of 10 videos were scored before" in capsys.readouterr().err
    assert json.loads(output.read_text()) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_damaged_lines_of_a_part_file_are_left_out(tmp_path):
    good = json.dumps({"key": "v1", "entry": {"video_uuid": "v1", "debug_data": [{"time": 0.0, "relevance_score": 0.5}]}}).encode()
    failed = b'{"key": "v2", "error": "cannot be read"}'
    bad = [b'{"key": "v0", "entry": {"video_uuidnull: 3', b'{"ky": "v0", "entry": {}}', b"[1]", b"", b"null", b"\xff\xfe", b'{"key": 7, "error": "x"}', b"[" * 9999,
           b'{"key": "v0", "entry": []}', b'{"key": "v0", "entry": {"video_uuid": "v0", "debug_data": []}}', good[: len(good) // 2]]  # fmt: skip
    (tmp_path / "rank-0000-of-0001.jsonl").write_bytes(b"\n".join([*bad, good, failed, b'{"key": "cut o']))
    damaged = []
    assert sorted(read_parts(tmp_path, damaged)) == ["v1", "v2"]
    assert damaged == [f"rank-0000-of-0001.jsonl:{line} is damaged" for line in range(1, len(bad) + 1)]


def test_one_command_at_a_time_writes_an_output(model_flags, tvsum, tmp_path):
    output = tmp_path / "scores.json"
    with held(output, 0), pytest.raises(UserError, match=rf"another run is writing to .*scores.json \(process {os.getpid()} on"):
        score.main(command(model_flags, tvsum, output)[3:])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_scoring_is_one_sentence_and_the_rest_is_kept(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    record = {"key": "v1", "error": "cannot be read"}
    with part_writer(tmp_path, 0, 1) as write:
        write(record)
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="cannot be written .No space left.*the same command goes on"):
            write({"key": "v2", "error": "cannot be read"})
    assert read_parts(tmp_path)["v1"] == record


def test_ranks_end_with_their_launcher(tmp_path):
    rank = "import time, aha.score as s; s.choice_of = lambda *a: (print('up', flush=True), time.sleep(600)); s.main(['--llm_pretrained', 'demo', '--video', 'x', '--output', 'y'])"
    launcher = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {rank!r}]); print(p.pid, flush=True); p.wait()"
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}", "TORCHELASTIC_RUN_ID": "1"}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert process.stdout.readline() == "up\n" and child in running("s.choice_of")
    process.kill()
    process.wait()
    wait_for(lambda: child not in running("s.choice_of"), what="the rank has ended")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "nonsense"], "none of tvsum, hisum"),
        (["--dataset", "tvsum", "--data_root", "nowhere"], "folder nowhere does not exist"),
        (["--dataset", "hisum", "--fold", "1"], "only tvsum has folds"),
        (["--video", "nowhere.mp4"], "cannot be opened"),
        (["--video", "x.mp4", "--frame_fps", "0"], "--frame_fps is 0"),
        (["--video", "x.mp4", "--chunk_frames", "0"], "--chunk_frames is 0"),
    ],
)
def test_bad_input_is_one_sentence(model_flags, flags, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        score.main([*model_flags, *flags, "--output", str(tmp_path / "x.json")])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_released_is_the_three_reference_choices(model_flags, tmp_path):
    video = str(shared_fixture("reference/videos/landscape.mp4"))
    common = [*model_flags, "--video", video, "--query", "q", "--cache", "dynamic_sink", "--window", "300"]
    three = ["--prompt_order", "reference", "--cache_semantics", "reference", "--sampling", "reference"]
    entries = []
    for name, flags in (("released", ["--released"]), ("three", three), ("both", ["--released", *three]), ("ours", [])):
        score.main([*common, *flags, "--output", str(tmp_path / f"{name}.json")])
        entries.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert entries[0] == entries[1] == entries[2] != entries[3]
    for own in (["--prompt_order", "aha"], ["--cache_semantics", "aha"], ["--sampling", "timestamps"]):
        with pytest.raises(UserError, match=f"--released means {own[0]} reference, and {own[0]} {own[1]} was given; leave one"):
            score.main([*common, "--released", *own, "--output", str(tmp_path / "x.json")])


@pytest.mark.parametrize(
    "command",
    ["aha.score", "aha.eval.ablate", "aha.cli", "aha.cli highlights", "aha.cli watch", "aha.cli demo", "aha.data.feature_cache"],
)
def test_help_needs_no_torch(command):
    """The last is a control: the check finds torch where it is imported."""
    module, *rest = command.split()
    code = (
        f"import runpy, sys; sys.argv = ['x', *{rest!r}, '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "found = {'torch', 'transformers'} & set(sys.modules); print(*found, file=sys.stderr); sys.exit(bool(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == (command == "aha.data.feature_cache"), done.stderr


def test_the_video_backend_is_that_of_the_flag(model_flags, tvsum, tmp_path, monkeypatch):
    used = []
    pyav = reader.BACKENDS["pyav"]
    monkeypatch.setitem(reader.BACKENDS, "decord", lambda *arguments: used.append("decord") or pyav(*arguments))
    monkeypatch.setitem(reader.BACKENDS, "pyav", lambda *arguments: used.append("pyav") or pyav(*arguments))
    video = str(shared_fixture("reference/videos/landscape.mp4"))
    limits, dataset = ["--max_num_frames", "2"], ["--dataset", "tvsum", "--data_root", str(tvsum), "--limit", "1"]
    backend = ["--video_backend", "decord"]
    score.main([*model_flags, "--video", video, *limits, *backend, "--output", str(tmp_path / "one.json")])
    score.main([*model_flags, *dataset, *limits, *backend, "--output", str(tmp_path / "all.json")])
    assert used == ["decord"] * 2
    spread = ["--frame_fps", "0", *limits]  # numbers are of whole videos
    ablate.main([*model_flags, *dataset, *spread, *backend, "--study", "corruption", "--output", str(tmp_path / "ablation")])
    cli.run(["highlights", video, "--query", "q", *limits, *backend, *model_flags, "--no_reel", "--output", str(tmp_path / "highlights")])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # nobody types a question
    cli.run(["watch", str(next(tvsum.rglob("*.mp4"))), "--query", "q", *backend, *model_flags])
    config = write_tvsum(tmp_path / "mixture", videos=1)
    check.main([str(config), "--read", *backend])
    assert len(used) >= 6 and set(used) == {"decord"}
    build_mixture(config, load_tokenizer(model_flags[1]), video_backend="decord")[0]
    assert used[-1] == "decord"
    with pytest.raises(SystemExit):
        score.parse([*model_flags, "--video", video, "--video_backend", "vlc", "--output", "x"])
    with pytest.raises(UserError, match="--video_backend vlc is none of pyav, decord, torchcodec"):
        ScoreConfig(video_backend="vlc")
