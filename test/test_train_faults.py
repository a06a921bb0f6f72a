"""What went wrong around training without a word: silent errors, secrets in files, resuming on other data, machines that lack something."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from paths import REPO, shared_fixture
from safetensors.torch import load_file, save_file
from transformers import Trainer

from aha.conversation import tokenizer_folder
from aha.core import environment
from aha.core.prediction import score_rows
from aha.data.samples import GroundingSample, RelevanceSample, samples_hash
from aha.errors import UserError
from aha.training import data
from aha.training.arguments import difference, parse, settings
from aha.training.card import model_card
from aha.training.data import readers_that_fit
from aha.training.model import content
from aha.training.trainer import MOST_SKIPPED, AhaTrainer, MicroBatches

BASE = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")

RANK = """
import sys, torch.distributed as dist
from aha.core.environment import run_rank
from aha.errors import UserError
def main(argv):
    dist.init_process_group("gloo", init_method=f"file://{argv[0]}/rendezvous", rank=0, world_size=1)
    assert sys.excepthook is not sys.__excepthook__, "torch puts its hook around ours no more: this test has lost its reason"
    raise {"user": UserError("the cure is X."), "bug": ValueError("a bug")}[argv[1]]
run_rank(main)
"""


@pytest.mark.parametrize(("kind", "code", "said"), [("user", 2, "error: the cure is X."), ("bug", 1, "ValueError: a bug")])
def test_an_error_is_said_though_torch_wraps_the_hook_for_errors(tmp_path, kind, code, said):
    environ = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}"}
    run = subprocess.run([sys.executable, "-c", RANK, str(tmp_path), kind], capture_output=True, text=True, env=environ, check=False)
    assert run.returncode == code and said in run.stderr
    assert ("Traceback" in run.stderr) == (kind == "bug")


@pytest.mark.parametrize(
    "flag", [["--hub_token", "hf_SECRET"], ["--hub-token", "hf_SECRET"], ["--hub_token=hf_SECRET"], ["--hub_tok=hf_SECRET"]]
)
def test_a_hub_token_is_in_nothing_that_is_written(tmp_path, monkeypatch, flag):
    monkeypatch.setenv("HF_TOKEN", "another")
    monkeypatch.setattr(sys, "argv", ["aha.train", "--output_dir", str(tmp_path), *flag])
    model, sources, run = parse(sys.argv[1:])
    assert "SECRET" not in json.dumps(settings(model, sources, run)) + run.to_json_string() + " ".join(sys.argv)
    assert os.environ["HF_TOKEN"] == "hf_SECRET"


# ---- resuming ----


def test_resuming_compares_the_weights_and_what_is_learnt(tmp_path):
    same = {
        "model": {},
        "data": {},
        "training": {},
        "base_content": "a",
        "adapter_content": "b",
        "mixture": [{"name": "tvsum", "samples": 3, "content": "c"}],
    }
    assert difference(same, same) == []
    before = {name: value for name, value in same.items() if "content" not in name} | {"mixture": [{"name": "tvsum", "samples": 3}]}
    assert difference(same, before) == [], "checkpoints of before hold no such hashes"
    assert "weights of the base: x -> a" in difference(same, same | {"base_content": "x"})
    assert "weights of the starting adapter: x -> b" in difference(same, same | {"adapter_content": "x"})
    (line,) = difference(same, same | {"mixture": [{"name": "tvsum", "samples": 3, "content": "x"}]})
    assert line == "samples, labels or requests of tvsum: x -> c"
    assert any(
        line.startswith("usable samples")
        for line in difference(same, same | {"mixture": [{"name": "tvsum", "samples": 4, "content": "c"}]})
    )


def test_the_hash_of_samples_is_of_ids_labels_and_requests_not_of_places():
    sample = RelevanceSample("tvsum/a", "a", "/here/a.mp4", 10.0, request="a title", scores=np.array([1.0, 5.0, 2.0]))
    first = samples_hash([sample])
    assert samples_hash([replace(sample, video_path="/there/a.mp4")]) == first
    others = [
        replace(sample, scores=6 - sample.scores),
        replace(sample, request="another"),
        replace(sample, sample_id="tvsum/b"),
        replace(sample, duration=11.0),
    ]
    assert len({first, *(samples_hash([other]) for other in others)}) == 5
    moment = GroundingSample("c/a", "a", "a.mp4", 10.0, query="q", spans=[[1.0, 2.0]])
    assert samples_hash([moment]) != samples_hash([replace(moment, spans=[[1.0, 3.0]])])


def test_the_hash_of_weights_sees_one_tensor_that_changed(tmp_path, monkeypatch):
    tensors = {name: tensor.clone() for name, tensor in load_file(BASE / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    whole = content(tmp_path)
    for name, value in {"STRIDE": 4096, "PIECE": 64, "WHOLE": 16 * 4096}.items():  # a large file is looked at here and there
        monkeypatch.setattr(f"aha.core.content.{name}", value)
    sampled = content(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"] *= 3
    save_file(tensors, tmp_path / "model.safetensors")
    assert content(tmp_path) != sampled
    monkeypatch.undo()
    assert content(tmp_path) != whole


# ---- numbers ----


def fp16_trainer(monkeypatch, tmp_path, norm, fp16=True):
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: torch.tensor(norm))
    trainer = AhaTrainer.__new__(AhaTrainer)
    trainer.events = []
    trainer.args = SimpleNamespace(world_size=1, process_index=0, fp16=fp16)
    trainer.state = SimpleNamespace(global_step=6)
    trainer.speed = SimpleNamespace(worked=lambda **counts: None)
    trainer.history = SimpleNamespace(
        event=lambda name, step, **values: trainer.events.append((name, step)), step=lambda step, values: None
    )
    trainer._get_learning_rate = lambda: 0.1
    trainer._skipped = 0
    trainer._begin_step()
    trainer._parts, trainer._weighted, trainer._micro_steps = {"lm": torch.tensor(1.0)}, {"lm": torch.tensor(1.0)}, 1
    return trainer


def test_a_step_that_float16_skips_is_no_error(tmp_path, monkeypatch):
    trainer = fp16_trainer(monkeypatch, tmp_path, float("inf"))
    trainer._get_grad_norm(None)
    assert trainer.events == [("skipped_step", 7)]
    trainer._skipped, trainer._parts, trainer._weighted, trainer._micro_steps = (
        MOST_SKIPPED,
        {"lm": torch.tensor(1.0)},
        {"lm": torch.tensor(1.0)},
        1,
    )
    with pytest.raises(UserError, match="gradient norm at step 7 is inf"):
        trainer._get_grad_norm(None)
    with pytest.raises(UserError, match="gradient norm at step 7 is inf"):
        fp16_trainer(monkeypatch, tmp_path, float("inf"), fp16=False)._get_grad_norm(None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named_wherever_scores_are_read(value):
    with pytest.raises(UserError, match=r"relevance_score of the frame at 1.00 s is not finite"):
        score_rows([0.0, 1.0], [0.1, 0.2], [0.5, value], None)


# ---- the machine ----


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_word_and_the_run_goes_on(tmp_path, monkeypatch, capsys, number):
    def absent(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", absent)
    environment.lock_folder(str(tmp_path)).close()
    assert "has no locks" in capsys.readouterr().err


def test_who_holds_a_folder_is_said(tmp_path):
    with environment.lock_folder(str(tmp_path)), pytest.raises(UserError, match=rf"\(process {os.getpid()} on"):
        environment.lock_folder(str(tmp_path))
    environment.lock_folder(str(tmp_path)).close()


def test_no_more_readers_than_shared_memory_has_room_for(monkeypatch, capsys, tmp_path):
    mixture = SimpleNamespace(sources=[SimpleNamespace(max_num_frames=100)], frame=SimpleNamespace(side=384))
    args = SimpleNamespace(dataloader_prefetch_factor=None, per_device_train_batch_size=1, process_index=0)
    monkeypatch.setattr(data, "SHARED_MEMORY", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for free, fit in ((64 << 20, 0), (300 << 20, 2), (64 << 30, 4)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert readers_that_fit(4, args, mixture) == fit
        assert ("--shm-size" in capsys.readouterr().out) == (fit < 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # they share it
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1200 << 20))
    assert readers_that_fit(4, args, mixture) == 1 and readers_that_fit(0, args, mixture) == 0


def test_readers_that_give_nothing_end_the_run_with_a_sentence():
    def silent():
        raise RuntimeError("DataLoader timed out after 600 seconds")
        yield

    with pytest.raises(UserError, match="more shared memory"):
        list(MicroBatches(silent(), 1, SimpleNamespace(waited=lambda seconds: None)))


NETRC = "machine {host}\n  login user\n  password " + "a" * 40 + "\n"


@pytest.mark.parametrize(("url", "settings_file", "host", "online"), [
    ("https://wandb.lab.example.org", "", "wandb.lab.example.org", True), ("https://wandb.lab.example.org:8443/", "", "wandb.lab.example.org", True),
    (None, "[default]\nbase_url = https://wandb.lab.example.org\n", "wandb.lab.example.org", True), (None, "", "api.wandb.ai", True),
    ("https://wandb.lab.example.org", "", "api.wandb.ai", False), (None, "no settings file", "api.wandb.ai", True),
])  # fmt: skip
@pytest.mark.parametrize("named", [True, False])
def test_a_key_for_the_server_that_is_used_means_online(tmp_path, monkeypatch, url, settings_file, host, online, named):
    for name in [name for name in os.environ if name.startswith("WANDB")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SILENT", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_PROJECT", "WANDB_TAGS"):
        monkeypatch.setenv(name, "")  # so that what prepare_wandb sets is taken back
    place = tmp_path / ("keys" if named else ".netrc")
    place.write_text(NETRC.format(host=host))
    place.chmod(0o600)
    if named:
        monkeypatch.setenv("NETRC", str(place))
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    (tmp_path / ".config/wandb").mkdir(parents=True)
    (tmp_path / ".config/wandb/settings").write_text(settings_file)
    environment.prepare_wandb(str(tmp_path / "run"), main=False)
    assert (os.environ["WANDB_MODE"] != "offline") == online


def test_the_tokenizer_is_the_adapters_or_else_the_bases(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert tokenizer_folder((adapter, BASE)) == BASE and tokenizer_folder((None, BASE)) == BASE and tokenizer_folder((adapter,)) is None
    (adapter / "tokenizer.json").touch()  # the public Aha has no tokenizer_config.json
    assert tokenizer_folder((adapter, BASE)) == adapter


def test_a_card_holds_no_path_of_this_machine(tmp_path):
    base = tmp_path / "private/llava-base"
    base.mkdir(parents=True)
    shown = {
        "model": {"llm_pretrained": str(base), "lora_pretrained": "org/adapter"},
        "data": {"dataset_config": str(tmp_path / "mine.json")},
        "training": {},
        "mixture": [],
    }
    (tmp_path / "settings.json").write_text(json.dumps(shown))
    card = model_card(tmp_path, base=str(base), merged=False)
    assert str(Path("private")) not in card and "llava-base" in card and "org/adapter" in card and "mine.json" in card
