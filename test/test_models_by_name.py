"""Models by name: the real hub client against a hub on 127.0.0.1 that serves tiny weights in the published layouts under the real names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from highlights_media import make_video
from hub import Hub
from huggingface_hub import constants, scan_cache_dir
from paths import REPO, shared_fixture

from aha import cli, preflight
from aha.api import load
from aha.errors import UserError
from aha.scoring import known_models
from aha.scoring.known_models import BASE_7B
from aha.scoring.model_choice import DEMO_ADAPTER, DEMO_BASE, ModelChoice, spelled_out
from aha.train import main as train_main

TINY = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The published repositories under their names; the cache is empty and the working folder too."""
    repositories = {BASE_7B: TINY, "wangyueqian/MMDuet": shared_fixture("reference/mmduet-adapter")}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with Hub(repositories) as hub:
        for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):  # which hold the address since their import
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(constants.ENDPOINT, hub.address))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # 10 MB, more than the tiny weights have
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def listed(capsys) -> dict[str, str]:
    capsys.readouterr()
    cli.run(["models"])
    out = capsys.readouterr().out
    assert all(len(line) <= 80 and "\x1b" not in line for line in out.splitlines())
    return {
        line.split()[0]: line.split("GB")[-1].strip() for line in out.splitlines() if line[:1].isalpha() and "GiB" in line and "B " in line
    }


def test_a_name_is_fetched_said_checked_and_listed(hub, capsys, monkeypatch):
    assert listed(capsys) == {"demo": "yes", "mmduet-7b": "no", "aha-7b": "no"}
    cli.run(["models", "get", "mmduet-7b"])
    out, err = capsys.readouterr()
    assert f"downloading {BASE_7B}: " in err and "MB into" in err and "files equal to the hub's" in out
    assert listed(capsys) == {"demo": "yes", "mmduet-7b": "yes", "aha-7b": "the base only"}
    sent = sum(hub.sent.values())
    by_name = ModelChoice(model="mmduet-7b", device="cpu")
    assert by_name.name == "mmduet-7b" and by_name.sources == [BASE_7B, "wangyueqian/MMDuet"]
    asked = len(hub.asked)
    model, _ = by_name.load()
    assert sum(hub.sent.values()) == sent and model.relevance_head.out_features == 2
    assert "Fetching" not in capsys.readouterr().err and len(hub.asked) == asked  # looked up once, when it was fetched
    # without network, from the full cache
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(ModelChoice(model="mmduet-7b", device="cpu").load()) == 2 and load("mmduet-7b", device="cpu").name == "mmduet-7b"


def test_a_model_of_which_a_shard_lacks_is_not_in_the_cache(hub, capsys, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(TINY, sharded)
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    (sharded / "model-00002-of-00002.safetensors").write_bytes(b"the rest")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    hub.repositories["org/sharded"] = sharded
    folder = known_models.fetch("org/sharded")
    assert known_models.cached("org/sharded") and "Fetching" in capsys.readouterr().err
    (folder / names["b"]).unlink()
    assert not known_models.cached("org/sharded")


def test_a_cut_download_goes_on_where_it_was_cut(hub, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its own tries
    weights = "model.safetensors"
    size = (TINY / weights).stat().st_size
    hub.cut[weights] = [size // 8, 3]  # three times; the client goes on by itself
    cli.run(["models", "get", BASE_7B])
    assert size <= hub.sent[f"{BASE_7B}/{weights}"] < size + 3 * constants.DOWNLOAD_CHUNK_SIZE
    assert sum(part is not None for method, path, part in hub.asked if method == "GET" and path.endswith(weights)) == 3
    adapter = "adapter_model.safetensors"
    hub.cut[adapter] = [1000, 1000]  # for good
    with pytest.raises(UserError, match="the download of wangyueqian/MMDuet stopped .*the same command goes on with the files that lack"):
        cli.run(["models", "get", "mmduet-7b"])
    assert listed(capsys)["mmduet-7b"] == "the base only" and not known_models.cached("wangyueqian/MMDuet")
    # eight files come at a time: which others were complete, or had begun, when the adapter broke off is chance
    repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    complete = {f"{repo.repo_id}/{file.file_name}" for repo in repos for revision in repo.revisions for file in revision.files}
    assert len(repos) == 2 and f"{BASE_7B}/{weights}" in complete and f"wangyueqian/MMDuet/{adapter}" not in complete
    sent = {name: hub.sent[name] for name in complete}
    hub.cut.clear()
    cli.run(["models", "get", "mmduet-7b"])
    assert {name: hub.sent[name] for name in complete} == sent  # what was complete is not fetched twice
    assert listed(capsys)["mmduet-7b"] == "yes"


def test_what_cannot_be_had_is_one_sentence(hub, monkeypatch):
    with pytest.raises(
        UserError, match="aiden200/aha is neither a folder here nor a model on the hub.*aha_weights.zip.*folder aha_weights"
    ):
        ModelChoice(model="aha-7b").fetch()
    hub.gated.add("wangyueqian/MMDuet")
    with pytest.raises(UserError, match="MMDuet is gated: accept its terms"):
        ModelChoice(model="mmduet-7b").fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub cannot be reached"):
        ModelChoice(model="wangyueqian/MMDuet").fetch()
    with pytest.raises(UserError, match="no name .demo, mmduet-7b, aha-7b., no folder here and no hub id"):
        ModelChoice(model="mmduet7b")
    with pytest.raises(UserError, match="not both"):
        ModelChoice(model="demo", llm_pretrained="x")
    with pytest.raises(UserError, match="which model"):
        cli.run(["score", "--video", "x.mp4", "--output", "x.json"])


def test_a_damaged_file_is_found(hub):
    cli.run(["models", "get", "wangyueqian/MMDuet"])
    folder = known_models.fetch("wangyueqian/MMDuet")
    weights = (folder / "adapter_model.safetensors").resolve()
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-4] + b"flip")
    with pytest.raises(UserError, match="adapter_model.safetensors is not what the hub has"):
        cli.run(["models", "get", "wangyueqian/MMDuet"])


def test_a_folder_of_the_archive_or_of_a_trained_adapter(hub):
    shutil.copytree(shared_fixture("reference/aha-adapter"), "aha_weights")
    assert ModelChoice(model="aha-7b").sources == [BASE_7B, "aha_weights"]
    ModelChoice(model="aha-7b", device="cpu").load()
    # a trained adapter brings the base that its settings name
    shutil.copytree(DEMO_ADAPTER, "mine")
    settings = Path("mine/adapter_config.json")
    settings.write_text(settings.read_text().replace(DEMO_BASE.name, str(DEMO_BASE)))
    choice = ModelChoice(model="mine", device="cpu")
    assert choice.sources == [str(DEMO_BASE), "mine"] and not choice.is_demo
    choice.load()


def test_a_name_wherever_weights_are_taken(hub, tmp_path, capsys, monkeypatch):
    """train, merge and preflight take base and adapter apart: a name stands for both."""
    published = Path(shutil.copytree(hub.repositories["wangyueqian/MMDuet"], tmp_path / "mmduet"))
    settings = json.loads((published / "adapter_config.json").read_text())
    (published / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": BASE_7B}))
    hub.repositories["wangyueqian/MMDuet"] = published
    words = ["--model", "mmduet-7b", "--output_dir", "run"]
    assert spelled_out(words) == ["--output_dir", "run", "--llm_pretrained", BASE_7B, "--lora_pretrained", "wangyueqian/MMDuet"]
    assert hub.sent == {}  # nothing is fetched to look a name up
    assert spelled_out(["--llm_pretrained", "x", "--fold", "1"]) == ["--llm_pretrained", "x", "--fold", "1"]
    with pytest.raises(UserError, match="not both"):
        cli.run(["merge", "--model", "mmduet-7b", "--lora_pretrained", "x", "--output", "merged"])
    monkeypatch.setattr(preflight, "hub_answers", lambda: True)
    with pytest.raises(UserError):
        cli.run(["preflight", "--model", "mmduet-7b", "--num_gpus", "0", "--dataset_config", str(REPO / "configs/datasets/tvsum.json")])
    err = capsys.readouterr().err
    assert "base model" not in err and "MMDuet checkpoint" not in err and "adapter:" not in err  # the hub has them
    cli.run(["merge", "--model", "mmduet-7b", "--output", "merged", "--dtype", "float32"])
    assert f"downloading {BASE_7B}: " in capsys.readouterr().err
    merged, apart = ModelChoice(model="merged", device="cpu").load()[0], ModelChoice(model="mmduet-7b", device="cpu").load()[0]
    assert merged.get_parameter("lm_head.weight").equal(apart.get_parameter("lm_head.weight"))
    with pytest.raises(UserError, match="merged is no adapter on a base; give --llm_pretrained BASE --lora_pretrained ADAPTER"):
        spelled_out(["--model", "merged"])
    with pytest.raises(UserError, match="no name .demo, mmduet-7b, aha-7b."):
        cli.run(["train", "--model", "mmduet7b"])
    given = []
    monkeypatch.setattr("aha.training.run.train", given.append)
    train_main(["--model", "mmduet-7b"])
    assert given == [["--llm_pretrained", BASE_7B, "--lora_pretrained", "wangyueqian/MMDuet"]]


def test_an_adapter_finds_the_folder_of_its_base_again(hub):
    """adapter_config.json holds the base's name alone; where it was lies beside it."""
    shutil.copytree(DEMO_ADAPTER, "mine")
    Path("mine/.base").write_text(str(DEMO_BASE))
    assert ModelChoice(model="mine", device="cpu").sources == [str(DEMO_BASE), "mine"]


@pytest.mark.slow
def test_readme_first_block_online_then_offline(hub, tmp_path):
    """From an empty cache to a reel in one line, in a process of its own."""
    make_video("talk.mp4", seconds=6, fps=5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AHA_"))}
    environment |= {"PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}", "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address}
    words = ["highlights", "talk.mp4", "--query", "how the tyre is repaired", "--model", "mmduet-7b", "--device", "cpu", "--force"]
    for output, offline in (("a", "0"), ("b", "1")):
        done = subprocess.run([sys.executable, "-m", "aha.cli", *words, "--output", output], env=environment | {"HF_HUB_OFFLINE": offline},
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("downloading" in done.stderr) == (offline == "0") and os.path.exists(f"{output}/reel.mp4")
