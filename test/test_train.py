"""The whole trainer on a tiny model and generated videos: 2 processes with DeepSpeed, killed and resumed; its guards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO, shared_fixture
from safetensors.torch import load_file
from training_data import LONGEST, kill_in_the_middle, write_tvsum
from waiting import wait_until_gone

from aha.conversation import load_tokenizer
from aha.data.mixture import build_mixture
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.adapters import save_adapter
from aha.scoring.config import ScoreConfig
from aha.scoring.offline import Scorer
from aha.training.arguments import DataArguments
from aha.training.run import starting_prompt, train

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}",
}
RANKS = pytest.mark.slow  # .ci/run ranks runs them


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tvsum(tmp_path_factory.mktemp("tvsum"), videos=6, seconds=3)


def flags(data: Path, output: Path, *extra: str) -> list[str]:
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/mmduet-adapter")
    return [
        "--llm_pretrained", str(base), "--lora_pretrained", str(adapter), "--dataset_config", str(data), "--output_dir", str(output),
        "--gradient_accumulation_steps", "1", "--num_train_epochs", "2", "--learning_rate", "1e-3", "--disable_tqdm", "True",
        "--vision_cache", str(data.parent / "cache"), "--fold", "0", *extra,
    ]  # fmt: skip


def launch(arguments: list[str], log: Path, ranks: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m", "aha.train", *arguments]
    with log.open("w") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, cwd=REPO, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def deepspeed_flags(data):
    return ["--deepspeed", str(REPO / "configs/deepspeed/zero2.json"), "--save_steps", "2", "--report_to", "wandb"]


@pytest.fixture(scope="module")
def finished(data, deepspeed_flags, tmp_path_factory):
    """An uninterrupted run of 6 steps, with validation."""
    folder = tmp_path_factory.mktemp("run")
    log = folder / "console"
    process = launch(flags(data, folder / "out", *deepspeed_flags, "--eval_strategy", "steps", "--eval_steps", "4"), log)
    assert process.wait(timeout=LONGEST) == 0, log.read_text()
    return folder


def test_deepspeed_trains_on_two_ranks(finished):
    console = (finished / "console").read_text()
    assert "deepspeed: world size 2, ZeRO stage 2, parameters equal on all ranks: yes" in console
    steps = read_lines(finished / "out/loss_history.jsonl")
    assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        parts = ("lm", "informative", "relevance", "tv", "uncertainty")
        assert step["loss"] == pytest.approx(sum(step[f"{part}_weighted"] for part in parts))
        assert step["relevance_weighted"] == pytest.approx(8 * step["relevance"])
        assert step["grad_norm"] > 0
    assert steps[-1]["learning_rate"] < steps[1]["learning_rate"]


def test_run_folder_is_complete_and_the_adapter_loads(finished):
    out = finished / "out"
    base = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")
    model = AhaModel.from_base(base, out)
    assert model.config.heads == {"informative": 2, "relevance": 1, "uncertainty": 1}
    trained = json.loads((out / "trained_on_videos.json").read_text())
    assert len(trained) >= 2 and all(name.startswith("clip") for name in trained)
    assert json.loads((out / "versions.json").read_text())["packages"]["torch"]
    before = load_file(shared_fixture("reference/mmduet-adapter") / "adapter_model.safetensors")
    after = load_file(out / "adapter_model.safetensors")
    changed = [name for name, tensor in after.items() if name in before and not torch.equal(tensor.float(), before[name].float())]
    assert any("lora_A" in name for name in changed) and any("mm_projector" in name for name in changed)
    assert after["base_model.model.uncertainty_head.weight"].abs().sum() > 0
    assert len(list(out.glob("checkpoint-*"))) == 2 and not list(out.glob("partial-*"))
    (started,) = [line for line in read_lines(out / "train.log") if line.get("event") == "started"]
    assert list(started["seconds"]) == ["process group", "data and settings", "model", "vision features", "engine"]


def test_two_ranks_learn_what_one_learns_with_the_same_global_batch(data, deepspeed_flags, tmp_path):
    no_dropout = ["--lora_dropout", "0"]  # its masks differ between ranks
    process = launch(flags(data, tmp_path / "two", *deepspeed_flags, *no_dropout), tmp_path / "console")
    train(flags(data, tmp_path / "one", *no_dropout, "--gradient_accumulation_steps", "2"))
    assert process.wait(timeout=LONGEST) == 0, (tmp_path / "console").read_text()
    two, one = (read_lines(tmp_path / name / "loss_history.jsonl") for name in ("two", "one"))
    assert len(two) == len(one) > 2
    assert [s["loss"] for s in two] == pytest.approx([s["loss"] for s in one], rel=1e-4)


def test_validation_keeps_the_best(finished):
    lines = [line for line in read_lines(finished / "out/train.log") if "eval_kendall_tau" in line]
    assert lines and -1 <= lines[0]["eval_kendall_tau"] <= 1
    assert (finished / "out/best/adapter_model.safetensors").is_file()
    assert list((finished / "out/validation").glob("*.png"))


def test_wandb_is_kept_offline_without_secrets(finished):
    runs = list((finished / "out/wandb").glob("offline-run-*"))
    assert len(runs) == 1
    text = b"".join(p.read_bytes() for p in runs[0].rglob("*") if p.is_file())
    for key in (b"train/relevance_weighted", b"train/grad_norm", b"train/step_time_s", b"train/data_wait_s", b"eval/kendall_tau"):
        assert key in text


def test_killed_run_resumes_with_the_same_losses(data, deepspeed_flags, finished, tmp_path):
    """kill -9 of torchrun's process group in the middle; the same command goes on, and its log equals the uninterrupted one."""
    out, log = tmp_path / "out", tmp_path / "console"
    arguments = flags(data, out, *deepspeed_flags, "--eval_strategy", "steps", "--eval_steps", "4")
    history = out / "loss_history.jsonl"
    process = launch(arguments, log)
    kill_in_the_middle(process, history, log)
    wait_until_gone(str(out))  # the ranks die with their launcher
    assert not (out / "adapter_model.safetensors").exists()
    (out / "partial-99").mkdir()
    process = launch(arguments, log)
    assert process.wait(timeout=LONGEST) == 0, log.read_text()
    console = log.read_text()
    assert "resuming from" in console and "partial-99 was not finished" in console
    assert history.read_bytes() == (finished / "out/loss_history.jsonl").read_bytes()
    for name in ("adapter_model.safetensors",):
        assert (out / name).read_bytes() == (finished / "out" / name).read_bytes()


@pytest.mark.parametrize("stage, counts", [(1, (2, 1)), pytest.param(2, (2, 1, 2), marks=RANKS), pytest.param(3, (2, 1), marks=RANKS)])
def test_another_number_of_ranks_goes_on(data, stage, counts, tmp_path):
    """2 ranks train; from their second checkpoint 1 rank with twice the accumulation goes on; from its own, 2 ranks again. Without dropout
    the losses are those of the uninterrupted run."""
    config = REPO / f"configs/deepspeed/zero{stage}.json"
    common = ["--deepspeed", str(config), "--lora_dropout", "0", "--save_steps", "1", "--save_total_limit", "9"]
    out, log = tmp_path / "out", tmp_path / "console"
    histories = []
    for turn, ranks in enumerate(counts, start=1):
        accumulation = ["--gradient_accumulation_steps", str(2 // ranks)]
        assert launch(flags(data, out, *common, *accumulation), log, ranks).wait(timeout=LONGEST) == 0, log.read_text()
        histories.append(read_lines(out / "loss_history.jsonl"))
        if turn > 1:
            assert f"checkpoint-{turn}, written by {3 - ranks} processes (now {ranks})" in log.read_text()
        for folder in out.glob("checkpoint-*"):
            if int(folder.name.rpartition("-")[2]) > turn + 1:
                (folder / "complete.json").unlink()  # as if the run had been killed while it wrote this one
    whole = histories[0]
    assert len(whole) == 4
    for history in histories[1:]:
        assert history[:2] == whole[:2]
        assert [s["loss"] for s in history] == pytest.approx([s["loss"] for s in whole], rel=1e-6)
        assert [s["learning_rate"] for s in history] == [s["learning_rate"] for s in whole]
    assert not list(out.glob("universal-*"))


@RANKS
@pytest.mark.parametrize("cached", [False, True])
def test_zero3_does_not_hang_where_ranks_differ(cached, tmp_path):
    """One rank has more frames than the tower takes at a time, one an unreadable video, one replies to learn and the other none: under
    ZeRO-3 the ranks must still call the same modules equally often, or each waits for the other for ever."""
    config = write_tvsum(tmp_path / "data", videos=6, seconds=2, longer={1: 20, 2: 20}, fps=4, max_num_frames=100)
    broken = tmp_path / "data/video/clip05.mp4"
    content = broken.read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4  # the table of its frames comes after them and stays whole
    half = (start + end) // 2
    broken.write_bytes(content[:half] + bytes(end - half) + content[end:])
    reply = {"time": 1.0, "timespan": [0.0, 1.5], "text": "A red square."}
    (tmp_path / "captions.json").write_text(json.dumps({f"clip{k:02d}.mp4": {"0": [reply]} for k in (0, 1, 2)}))
    captions = {
        "name": "captions",
        "type": "captions",
        "annotations": str(tmp_path / "captions.json"),
        "videos": str(tmp_path / "data/video"),
    }
    config.write_text(json.dumps([*json.loads(config.read_text()), captions]))
    arguments = flags(config, tmp_path / "out", "--deepspeed", str(REPO / "configs/deepspeed/zero3.json"), "--num_train_epochs", "1")
    arguments += ["--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"]
    if cached:
        arguments += ["--gradient_checkpointing", "False"]
    else:
        arguments = [a for a in arguments if a not in ("--vision_cache", str(config.parent / "cache"))]
    log = tmp_path / "console"
    process = launch(arguments, log)
    try:
        assert process.wait(timeout=LONGEST) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "skipped tvsum/clip05 (weight 0 in this step)" in log.read_text()
    assert len(read_lines(tmp_path / "out/loss_history.jsonl")) == 3
    steps = [line for line in read_lines(tmp_path / "out/train.log") if "frames_per_s" in line]
    frames = [round(step["frames_per_s"] * step["step_time_s"]) for step in steps]
    assert frames == [1 + 1, 8 + 1, 80 + 1]  # of both ranks; a broken sample is one black frame
    assert steps[0]["imbalance"] < steps[1]["imbalance"] < steps[2]["imbalance"] < 1 and steps[2]["imbalance"] > 0.8
    assert [step["new_shapes"] for step in steps] == [1, 1, 1]


@RANKS
def test_zero3_computes_what_zero2_computes_in_bfloat16(data, tmp_path):
    """DeepSpeed's own linear layer for ZeRO-3 (memory_efficient_linear) rounds once more where there is a bias; the configs do without."""
    losses = {}
    for stage in ("zero2", "zero3"):
        config = str(REPO / f"configs/deepspeed/{stage}.json")
        process = launch(
            flags(data, tmp_path / stage, "--deepspeed", config, "--bf16", "True", "--max_steps", "2"), tmp_path / "log", ranks=1
        )
        assert process.wait(timeout=LONGEST) == 0, (tmp_path / "log").read_text()
        losses[stage] = [(s["loss"], s["grad_norm"]) for s in read_lines(tmp_path / stage / "loss_history.jsonl")]
    assert np.allclose(losses["zero2"], losses["zero3"], rtol=1e-6), losses


@RANKS
def test_zero3_keeps_activations_and_compiles_as_it_recomputes(data, tmp_path):
    """The weights that a layer's activations refer to are taken away after its forward pass and gathered again: losses and norms of all
    gradients over several steps are the same to the last bit whether layers are recomputed or not, and compiled ones, of which one is
    recomputed here, differ by rounding."""
    common = ["--deepspeed", str(REPO / "configs/deepspeed/zero3.json"), "--lora_dropout", "0", "--save_strategy", "no"]
    histories = []
    for again, compiled in (("True", "False"), ("False", "False"), ("1", "True")):
        out, log = tmp_path / f"{again}-{compiled}", tmp_path / "console"
        process = launch(flags(data, out, *common, "--gradient_checkpointing", again, "--compile_layers", compiled), log)
        assert process.wait(timeout=LONGEST) == 0, log.read_text()
        histories.append(read_lines(out / "loss_history.jsonl"))
        assert ("compiled layers" if compiled == "True" else "layers as they are") in log.read_text()
    again, kept, compiled = histories
    assert again == kept and len(again) == 4
    for part in ("loss", "grad_norm"):
        assert [step[part] for step in compiled] == pytest.approx([step[part] for step in again], rel=1e-5)


# ---- one process, no DeepSpeed ----


@pytest.mark.parametrize("step", [3, 4], ids=["within an epoch", "where an epoch ends"])
def test_resume_without_deepspeed(data, step, tmp_path):
    """The whole run reads its videos itself, the resumed one with processes that read ahead."""
    train(flags(data, tmp_path / "whole", "--save_steps", "99"))
    arguments = flags(data, tmp_path / "parts", "--save_steps", str(step), "--save_total_limit", "9", "--dataloader_num_workers", "2")
    train(arguments)
    for later in (tmp_path / "parts").glob("checkpoint-*"):
        if later.name != f"checkpoint-{step}":
            (later / "complete.json").unlink()  # as if the run had been killed while it wrote this one
    train(arguments)
    whole, parts = (read_lines(tmp_path / name / "loss_history.jsonl") for name in ("whole", "parts"))
    assert len(whole) == 8 and whole == parts


def test_system_prompt_of_training_is_that_of_scoring(data, tmp_path, capsys):
    words = "You watch how-to videos."
    train(flags(data, tmp_path / "out", "--max_steps", "1", "--limit", "1", "--system_prompt", words))
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), tmp_path / "out"
    assert json.loads((adapter / "settings.json").read_text())["data"]["system_prompt"] == words
    model = AhaModel.from_base(base, adapter)
    tokenizer = load_tokenizer(adapter)
    trained_on = build_mixture(data, tokenizer, fold=0, limit=1, system_prompt=words)[0]["input_ids"].tolist()
    session = Scorer(model, tokenizer, ScoreConfig()).session(1.0)
    fed = session.state.query("q")
    first = session.format.system(words)
    assert trained_on[: len(first)] == fed[: len(first)] == first != session.format.system()[: len(first)]
    assert "WARNING" not in capsys.readouterr().err
    session = Scorer(model, tokenizer, ScoreConfig(system_prompt="Other words.")).session(1.0)
    shown = capsys.readouterr().err
    assert session.state.system_prompt == "Other words." and "not the one that the model was trained with" in shown and words in shown
    again = DataArguments()
    assert starting_prompt(again, [adapter, base], say=True) == words == again.system_prompt  # goes on with the words of the adapter
    (adapter / "settings.json").write_text('{"data": {"system_prompt": 3}}')
    with pytest.raises(UserError, match="which is no text"):
        AhaModel.from_base(base, adapter)
    for settings in (lambda: ScoreConfig(system_prompt=" "), lambda: train(flags(data, adapter, "--system_prompt", ""))):
        with pytest.raises(UserError, match="--system_prompt is empty"):
            settings()


def test_resume_refuses_other_settings(data, tmp_path):
    train(flags(data, tmp_path / "out", "--save_steps", "2", "--limit", "2"))
    with pytest.raises(UserError, match=r"--learning_rate: 0.001 -> 0.5"):
        train(flags(data, tmp_path / "out", "--limit", "2", "--learning_rate", "0.5"))


def test_loss_that_is_not_finite_names_the_samples(data, tmp_path):
    base = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")
    model = AhaModel.from_base(base, shared_fixture("reference/mmduet-adapter"), merge=False)
    with torch.no_grad():
        model.model.mm_projector[2].weight.fill_(3e38)  # NaN itself is refused when it is loaded
    save_adapter(model, tmp_path / "broken", base=base.name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken" / name).write_bytes((shared_fixture("reference/mmduet-adapter") / name).read_bytes())
    with pytest.raises(UserError, match=r"loss at step 1 is nan .*tvsum/clip"):
        train(flags(data, tmp_path / "out", "--lora_pretrained", str(tmp_path / "broken")))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


NORM = """
import json, sys
import deepspeed, torch
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as the trainer does: no C++ is compiled, which took 75 s
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
deepspeed.init_distributed("gloo")
config = json.load(open(sys.argv[1])) | {"train_batch_size": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
config |= {"bf16": config["bf16"] | {"enabled": True}, "fp16": {"enabled": False}, "train_micro_batch_size_per_gpu": 1}
for factor in (1.0, float("inf"), float("nan")):
    model = torch.nn.Linear(4, 1, bias=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    loss = engine(torch.ones(1, 4, dtype=torch.bfloat16)).sum()
    model.weight.register_hook(lambda gradient: gradient * factor)
    engine.backward(loss)
    engine.step()
    print("norm", float(engine.get_global_grad_norm()))
"""


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_gradients_that_are_not_finite_show_in_the_norm(tmp_path, stage):
    """The configs leave out DeepSpeed's search of every gradient (half of an optimizer step's time): the norm, which ends the run, tells."""
    command = [sys.executable, "-c", NORM, str(REPO / f"configs/deepspeed/{stage}.json"), str(tmp_path / "store")]
    environment = {**ENVIRONMENT, "DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True)
    norms = [line for line in done.stdout.splitlines() if line.startswith("norm")]
    assert norms == ["norm 2.0", "norm inf", "norm inf"], done.stderr


def test_broken_sample_is_reported_and_has_no_weight(data, tmp_path, capsys, monkeypatch):
    """A video that cannot be read any more: the run goes on without it and says so."""
    from aha.data import mixture

    real = mixture.Mixture.item
    victim = "tvsum/clip01"

    def item(self, i, *reader):
        source, sample = self.items[i]
        if self.sources[source].samples[sample].sample_id == victim:
            raise UserError("video clip01.mp4 is cut off.")
        return real(self, i, *reader)

    monkeypatch.setattr(mixture.Mixture, "item", item)
    train(flags(data, tmp_path / "out", "--num_train_epochs", "1"))
    assert f"skipped {victim} (weight 0 in this step): video clip01.mp4 is cut off." in capsys.readouterr().out
    events = [line for line in read_lines(tmp_path / "out/train.log") if line.get("event") == "broken_sample"]
    assert [event["sample"] for event in events] == [victim]
    losses = {step["step"]: step["loss"] for step in read_lines(tmp_path / "out/loss_history.jsonl")}
    assert losses[events[0]["step"]] == 0 and all(np.isfinite(list(losses.values())))


def test_no_usable_sample(data, tmp_path):
    config = json.loads(data.read_text())
    (tmp_path / "empty").mkdir()
    config[0].update(videos=str(tmp_path / "empty"), index=str(tmp_path / "index.json"))
    (tmp_path / "mixture.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="empty|no usable sample|no video"):
        train(flags(tmp_path / "mixture.json", tmp_path / "out"))


@pytest.mark.parametrize("extra, message", [
    (("--modules_to_save", "mm_projector"), "informative_head, relevance_head, uncertainty_head would not be trained"),
    (("--modules_to_save", "mm_projector", "elephant"), "module elephant"),
    (("--lora_dropout", "1.5"), "--lora_dropout is 1.5"),
    (("--fold", "7"), "--fold is 7"),
    (("--no_such_flag", "1"), "unknown flag --no_such_flag"),
    (("--objective", "mmduet", "--lora_pretrained", "AHA"), "needs a relevance head of 2 outputs"),
    (("--resume_from_checkpoint", "nowhere"), "is no complete checkpoint"),
])  # fmt: skip
def test_bad_flags(data, tmp_path, extra, message):
    extra = [str(shared_fixture("reference/aha-adapter")) if value == "AHA" else value for value in extra]
    with pytest.raises(UserError, match=message):
        train(flags(data, tmp_path / "out", *extra))


def test_adapter_of_another_base(data, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in shared_fixture("reference/mmduet-adapter").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "lmms-lab/llava-onevision-qwen2-7b-ov"}))
    with pytest.raises(UserError, match="was trained on base lmms-lab/llava-onevision-qwen2-7b-ov"):
        train(flags(data, tmp_path / "out", "--lora_pretrained", str(adapter)))


def test_head_missing_from_the_optimizer():
    from aha.training.model import check_optimizer

    model = AhaModel.from_base(
        shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter"), merge=False
    )
    model.requires_grad_(False)
    model.relevance_head.requires_grad_(True)
    model.uncertainty_head.requires_grad_(True)
    check_optimizer(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    with pytest.raises(UserError, match="relevance_head.weight"):
        check_optimizer(model, torch.optim.AdamW(model.uncertainty_head.parameters()))
