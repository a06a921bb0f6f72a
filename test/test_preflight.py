"""The list of missing things: all at once, and nothing where all is there."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from paths import REPO
from test_data_mixture import make_video

from aha import preflight
from aha.data import new


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(preflight, "hub_answers", lambda: False)


def config(folder, there: bool):
    videos, annotations = folder / "video", folder / "anno.tsv"
    if there:
        videos.mkdir()
        (videos / "a.mp4").write_bytes(b"x")
        annotations.write_text("")
    path = folder / "config.json"
    entry = {
        "name": "tvsum",
        "type": "tvsum",
        "videos": str(videos),
        "annotations": str(annotations),
        "source": "https://example.org/tvsum",
    }
    path.write_text(json.dumps([entry]))
    return str(path)


def checkpoint(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return str(folder)


def test_everything_missing_is_listed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lines = preflight.missing_things(config(tmp_path, False), "org/base", str(tmp_path / "mmduet"), 8)
    assert [line.split(":")[0] for line in lines] == ["tvsum videos", "tvsum annotations", "MMDuet checkpoint", "base model", "GPUs"]
    assert "https://example.org/tvsum" in lines[0] and "hf download org/base" in lines[3] and "--demo" in lines[4]


def test_nothing_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    base = checkpoint(tmp_path / "base", "config.json", "model.safetensors")
    adapter = checkpoint(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    assert preflight.missing_things(config(tmp_path, True), base, adapter, 8) == []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert preflight.missing_gpus(8) == "GPUs: 8 asked for, 2 found; set NUM_GPUS=2 or free the others (CUDA_VISIBLE_DEVICES)"


def test_the_cache_is_asked_before_the_network(tmp_path, monkeypatch):
    """On a node without network everything may be in the hub's cache; an adapter's repository has no config.json."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "cannot be reached" in preflight.missing_base("org/base") and "cannot be reached" in preflight.missing_adapter("org/adapter")
    for name, files in {
        "base": ["config.json", "model-00001-of-00002.safetensors"],
        "adapter": ["adapter_config.json", "adapter_model.bin"],
        "half": ["config.json"],
    }.items():
        snapshot = tmp_path / f"models--org--{name}/snapshots/0a1b"
        snapshot.mkdir(parents=True)
        (tmp_path / f"models--org--{name}/refs").mkdir()
        (tmp_path / f"models--org--{name}/refs/main").write_text("0a1b")
        for file in files:
            (snapshot / file).write_text("{}")
    assert preflight.missing_base("org/base") is None and preflight.missing_adapter("org/adapter") is None
    assert "cannot be reached" in preflight.missing_base("org/half")


def test_the_hub_is_asked_for_the_file_that_such_a_repository_has(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(preflight, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, etag_timeout: asked.append((name, file)))
    assert preflight.missing_base("org/base") is None and preflight.missing_adapter("org/adapter") is None
    assert asked == [("org/base", "config.json"), ("org/adapter", "adapter_config.json")]


def test_half_there_is_not_there(tmp_path):
    assert "no config.json and safetensors" in preflight.missing_base(checkpoint(tmp_path / "base", "config.json"))
    assert "adapter_model.safetensors" in preflight.missing_adapter(checkpoint(tmp_path / "adapter", "adapter_config.json"))


@pytest.mark.parametrize("script, named", [("train_on_tvsum", []), ("train_on_hisum", ["--model", "mmduet-7b"]), ("train_mmduet", [])])
def test_scripts_print_the_list_and_stop(script, named):
    """Where the data is not there (as in a fresh clone), each training script ends with 2 and the list, without a traceback. A model by
    name takes the place of the default base and adapter."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    command = ["bash", str(REPO / "scripts" / f"{script}.sh"), *named]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if run.returncode == 0 or "missing" not in run.stderr:
        pytest.fail(run.stderr[-500:])
    assert run.returncode == 2 and "Traceback" not in run.stderr and "base model" in run.stderr


@pytest.mark.parametrize("script", ["train_on_tvsum", "train_on_hisum", "train_mmduet", "test"])
def test_help_of_every_script(script):
    run = subprocess.run(["bash", str(REPO / "scripts" / f"{script}.sh"), "--help"], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0 and f"usage: bash scripts/{script}.sh" in run.stdout


@pytest.mark.parametrize("variables, message", [({"NUM_GPUS": "many"}, "NUM_GPUS=many"), ({"NNODES": "2"}, "MASTER_ADDR")])
def test_wrong_variables_are_one_sentence(variables, message):
    environment = {**os.environ, **variables, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    run = subprocess.run(["bash", str(REPO / "scripts/train_on_tvsum.sh")], capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr


def test_old_python_is_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    environment = {**os.environ, "AHA_PYTHON": str(old)}
    run = subprocess.run(["bash", str(REPO / "scripts/test.sh")], capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 2 and "Python 3.9.2" in run.stderr and "3.11" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_a_dry_run_on_the_cpu_needs_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    base = checkpoint(tmp_path / "base", "config.json", "model.safetensors")
    flags = ["--dataset_config", config(tmp_path, True), "--llm_pretrained", base]
    make_video(tmp_path / "video/a.mp4", 2)
    (tmp_path / "anno.tsv").write_text("a\town\t1,2,3,4\n")
    (tmp_path / "info.tsv").write_text("category\tvideo_id\ttitle\turl\tlength\nown\ta\ta dog\tx\t0:02\n")
    entry = json.loads((tmp_path / "config.json").read_text())[0]
    (tmp_path / "config.json").write_text(json.dumps([{**entry, "info": str(tmp_path / "info.tsv")}]))
    flags += ["--fold", "-1"]
    preflight.main([*flags, "--use_cpu", "True"])
    with pytest.raises(preflight.UserError):
        preflight.main(flags)


def test_what_training_would_say_of_the_data_is_said_before_it(tmp_path, capsys):
    base = checkpoint(tmp_path / "base", "config.json", "model.safetensors")
    films = tmp_path / "films"
    films.mkdir()
    for number in range(3):
        make_video(films / f"f{number}.mp4", 2)
    (tmp_path / "spans.csv").write_text("video,query,start,end\n" + "".join(f"f{n},a dog,0,1\n" for n in range(3)))
    new.main([str(tmp_path / "spans.csv"), "--videos", str(films), "--output", str(tmp_path / "mine")])
    flags = ["--dataset_config", str(tmp_path / "mine/mine.json"), "--llm_pretrained", base, "--use_cpu"]
    for more, said in (
        ([], "3 videos cannot be split into 5 folds.*--splits FILE --split K"),
        (["--splits", str(tmp_path / "mine/splits.json"), "--split", "7"], "holds splits 0 to 2"),
        (["--splits", str(tmp_path / "mine/splits.json"), "--split", "0"], None),
        (["--fold", "-1"], None),
    ):
        if said is None:
            preflight.main([*flags, *more])
            continue
        with pytest.raises(preflight.UserError):
            preflight.main([*flags, *more])
        assert re.search(said, capsys.readouterr().err)
    for film in films.iterdir():
        film.write_bytes(b"x")
    with pytest.raises(preflight.UserError):
        preflight.main([*flags, "--fold", "-1"])
    assert "has no usable video for training; the first of 3 left out" in capsys.readouterr().err


@pytest.mark.parametrize("given, found, used", [(None, 4, "4"), (None, 0, "1"), ("2", 4, "2"), ("0", 0, "1")])
def test_checks_and_torchrun_start_in_one_process(monkeypatch, given, found, used):
    """What torchrun is given, and that it is not started where something is missing."""
    started, checked = [], []
    monkeypatch.setattr("torch.distributed.run.main", started.append)
    monkeypatch.setattr(preflight, "main", checked.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: found > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    monkeypatch.setattr("sys.argv", ["launch.py", "--standalone", "--", "--fold", "1", "--debug"])
    monkeypatch.setenv("AHA_LAUNCHED", "")
    monkeypatch.delenv("NUM_GPUS", raising=False)
    monkeypatch.setenv("NUM_GPUS", given or "")
    launch = str(REPO / "scripts/launch.py")
    runpy.run_path(launch, run_name="__main__")
    assert checked == [["--num_gpus", used, "--fold", "1"]]
    assert started == [["--standalone", "--nproc_per_node", used, "-m", "aha.train", "--fold", "1", "--debug"]]

    def missing(argv):
        raise preflight.UserError("the run was not started")

    monkeypatch.setattr(preflight, "main", missing)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(launch, run_name="__main__")
    assert ended.value.code == 2 and len(started) == 1
