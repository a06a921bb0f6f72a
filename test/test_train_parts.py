"""Parts of the trainer on their own: order of batches, logs, optimizer, 4-bit weights, compiled layers, merging, model card."""

import contextlib
import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_next.fused_tower import fused_mlp
from paths import REPO, shared_fixture
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training_data import write_tvsum
from waiting import wait_for

from aha.conversation import load_tokenizer
from aha.core.environment import lock_folder
from aha.data.mixture import build_mixture
from aha.errors import UserError
from aha.merge import main as merge_main
from aha.models import AhaModel, aha_losses
from aha.models.quantized import LEVELS, dequantize, quantize
from aha.training.card import model_card
from aha.training.checkpoint import complete, find_resume, leftovers, rotate
from aha.training.compiled import SeededDropout, run_and_recompute
from aha.training.data import Collator, RankBatches, Readers
from aha.training.logs import drop_after
from aha.training.model import base_name
from aha.training.optimizer import LowMemoryAdamW, stochastic_bfloat16, update
from aha.training.spare import HostEmbedding, embeddings_on_host, inputs_on_host
from aha.training.trainer import without_compiler

# ---- order of batches ----


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_batches_of_all_ranks_cover_the_epoch(count, batch_size, world, epoch, grouped):
    lengths = [(7 * i) % 13 for i in range(count)]
    ranks = []
    for rank in range(world):
        lengths_of = (lambda epoch: lengths) if grouped else None
        batches = RankBatches(count, batch_size=batch_size, rank=rank, world_size=world, seed=1, lengths=lengths_of, accumulation=3)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(ranks[-1]) == len(batches)
        assert ranks[-1] == list(batches)
    items = [i for batches in ranks for batch in batches for i in batch]
    assert set(items) == set(range(epoch * count, (epoch + 1) * count))
    assert len(items) == -(-count // (batch_size * world)) * batch_size * world
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)


def test_grouping_by_length_reduces_waiting():
    lengths = [(37 * i) % 101 for i in range(400)]

    def waiting(grouped):
        ranks = [list(RankBatches(400, batch_size=1, rank=r, world_size=4, seed=0, accumulation=16, lengths=grouped)) for r in range(4)]
        steps = [[lengths[rank[k][0]] for rank in ranks] for k in range(len(ranks[0]))]
        return sum(max(step) * 4 - sum(step) for step in steps)

    assert waiting(lambda epoch: lengths) < waiting(None) / 5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.sampled_from([(1, 1, 12), (1, 12, 1), (2, 3, 2), (1, 4, 3), (6, 2, 1)]), st.booleans())
def test_an_optimizer_step_sees_the_same_items_however_it_is_divided(steps, division, grouped):
    batch_size, world, accumulation = division
    lengths = [(37 * i) % 101 for i in range(12 * steps)]
    lengths_of = (lambda epoch: lengths) if grouped else None

    def items(batch_size, world, accumulation):
        ranks = [
            list(RankBatches(12 * steps, batch_size=batch_size, rank=r, world_size=world, seed=0, accumulation=accumulation, lengths=lengths_of))
            for r in range(world)
        ]  # fmt: skip
        return [
            sorted(i for rank in ranks for batch in rank[k * accumulation : (k + 1) * accumulation] for i in batch) for k in range(steps)
        ]

    assert items(*division) == items(12, 1, 1)


def test_padding_changes_nothing(tmp_path):
    """Samples of different lengths, alone as they are, padded to a round length, and together in one batch: the same scores and losses."""
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/mmduet-adapter")
    model = AhaModel.from_base(base, adapter).to_aha()
    mixture = build_mixture(write_tvsum(tmp_path, videos=3, seconds=3, longer={1: 5}), load_tokenizer(adapter), fold=None)
    samples = [mixture[i] for i in range(3)]

    def run(samples, multiple):
        batch = Collator(mixture, None, multiple)(samples)
        assert batch["input_ids_BT"].shape[1] % multiple == 0 and batch["num_tokens"] == sum(len(s["input_ids"]) for s in samples)
        output = model(batch["input_ids_BT"], torch.cat(batch["frames"]), logits_mask=batch["labels_BT"] != -100)
        losses = aha_losses(output, batch["labels_BT"], batch["informative_labels_BT"], batch["relevance_labels_BT"])
        return torch.stack([*losses.parts.values()]), output.scores().relevance

    with torch.no_grad():
        alone = [run([s], 1) for s in samples]
        for sample, (losses, relevance) in zip(samples, alone):
            padded = run([sample], 64)
            assert torch.allclose(padded[0], losses, atol=1e-5) and torch.allclose(padded[1], relevance, atol=1e-5)
        assert len({len(s["input_ids"]) for s in samples}) > 1
        assert torch.allclose(run(samples, 1)[1], torch.cat([relevance for _, relevance in alone]), atol=1e-5)


def test_epochs_differ():
    batches = RankBatches(50, batch_size=1, rank=0, world_size=1, seed=0)
    first = list(batches)
    batches.set_epoch(1)
    assert [i - 50 for (i,) in batches] != [i for (i,) in first]


# ---- reading ahead ----


class Numbers(Dataset):
    """Items that say their number and who read them, and write down the highest number that was read."""

    def __init__(self, count: int):
        self.count, self.highest = count, torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.highest.clamp_(min=number)
        return number, os.getpid()


@pytest.fixture
def readers():
    dataset = Numbers(9)
    batches = RankBatches(9, batch_size=2, rank=0, world_size=1, seed=3, lengths=lambda epoch: [(7 * i + epoch) % 5 for i in range(9)])
    batches.epochs = 3
    made = Readers(dataset, batches, num_workers=2, collate_fn=list)
    yield made
    made.close()


def numbers_of(epoch_iterator, count):
    taken = [next(epoch_iterator) for _ in range(count)]  # as the trainer does, which never asks for more than there is
    return [[number for number, _ in batch] for batch in taken], {process for batch in taken for _, process in batch}


def test_readers_give_torchs_batches_in_every_epoch_and_read_on_meanwhile(readers):
    plain = DataLoader(readers.dataset, batch_sampler=readers.batches, num_workers=0, collate_fn=list)
    processes = set()
    for epoch in range(3):
        readers.batches.set_epoch(epoch)
        torch.manual_seed(epoch)
        expected, state = [[number for number, _ in batch] for batch in plain], torch.get_rng_state()
        torch.manual_seed(epoch)
        readers.dataset.highest.zero_()
        found, who = numbers_of(iter(readers), len(plain))
        assert found == expected and torch.equal(torch.get_rng_state(), state)
        processes |= who
        wait_for(lambda: epoch == 2 or readers.dataset.highest >= 9 * (epoch + 1), what="the next epoch is read, which nobody has begun")  # noqa: B023
    assert len(processes) == 2 and os.getpid() not in processes


def test_readers_go_on_in_the_middle_of_an_epoch_and_begin_anew_where_one_was_left(readers):
    batches = readers.batches
    batches.set_epoch(1)
    rest, _ = numbers_of(iter(skip_first_batches(readers, 2)), len(batches) - 2)
    assert rest == list(batches)[2:]
    batches.set_epoch(2)
    assert numbers_of(iter(readers), len(batches))[0] == list(batches)
    batches.set_epoch(0)
    first = iter(readers)
    assert numbers_of(first, 2)[0] == list(batches)[:2]  # and then an epoch that ends early
    batches.set_epoch(1)
    assert numbers_of(iter(readers), len(batches))[0] == list(batches)


class Leftover:
    """Garbage of the parent that says in whose process it was collected."""

    collected_by = torch.zeros((), dtype=torch.int64).share_memory_()

    def __init__(self):
        self.cycle = self

    def __del__(self):
        if os.getpid() != PARENT:
            self.collected_by.fill_(os.getpid())


PARENT = os.getpid()


class Collecting(Numbers):
    def __getitem__(self, number):
        gc.collect()
        return number, os.getpid()


def test_readers_do_not_collect_what_their_parent_left():
    """Freeing PyAV's decoders in a forked process waits for ever for threads that are not there."""
    batches = RankBatches(4, batch_size=1, rank=0, world_size=1, seed=0)
    made = Readers(Collecting(4), batches, num_workers=1, collate_fn=list)
    gc.disable()
    try:
        Leftover()
        numbers_of(iter(skip_first_batches(made, 1)), 3)
        Leftover()
        numbers_of(iter(made), 4)
    finally:
        gc.enable()
        made.close()
    assert Leftover.collected_by == 0


def test_the_compiler_is_left_out_for_a_while_only(monkeypatch):
    for before in (None, "0"):
        monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
        if before is not None:
            monkeypatch.setenv("TORCHDYNAMO_DISABLE", before)
        with pytest.raises(UserError), without_compiler():
            function = torch.compile(lambda x: x + 1)
            assert function(torch.ones(1)) == 2 and os.environ["TORCHDYNAMO_DISABLE"] == "1"
            raise UserError("ends here")
        assert os.environ.get("TORCHDYNAMO_DISABLE") == before


# ---- logs and checkpoints on disk ----


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "train.log"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    drop_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def make_checkpoint(run, step, world_size=2, stage=2, finished=True):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    training = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    (folder / "settings.json").write_text(json.dumps({"training": training}))
    if finished:
        facts = {"step": step, "world_size": world_size, "zero_stage": stage, "files": ["settings.json"]}
        (folder / "complete.json").write_text(json.dumps(facts))
    return folder


def test_only_complete_checkpoints_count(tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 200, finished=False)
    (tmp_path / "partial-300").mkdir()
    assert [p.name for p in complete(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert [p.name for p in leftovers(tmp_path)] == ["checkpoint-200", "partial-300"]
    assert find_resume("auto", str(tmp_path), 2, 2, {}, lambda a, b: []).name == "checkpoint-100"
    assert find_resume("none", str(tmp_path), 2, 2, {}, lambda a, b: []) is None
    rotate(tmp_path, 1, keep=str(tmp_path / "checkpoint-9"))
    assert [p.name for p in complete(tmp_path)] == ["checkpoint-9", "checkpoint-100"]


def test_resume_refuses_other_stages_other_batches_and_damaged_checkpoints(tmp_path):
    folder = make_checkpoint(tmp_path, 5)

    def find(world_size, accumulation, per_gpu=3, stage=2):
        ours = {"training": {"per_device_train_batch_size": per_gpu, "gradient_accumulation_steps": accumulation}}
        return find_resume("auto", str(tmp_path), world_size, stage, ours, lambda a, b: [] if a == b else ["--something"])

    assert find(2, 4) == find(1, 8) == find(4, 2) == find(8, 1) == folder
    with pytest.raises(UserError, match="with ZeRO stage 2, this run has 3"):
        find(2, 4, stage=3)
    with pytest.raises(UserError, match="--something"):
        find(2, 8)
    with pytest.raises(UserError, match="same 24 samples 4 processes need --per_device_train_batch_size 3 --gradient_accumulation_steps 2"):
        find(4, 4)
    with pytest.raises(UserError, match="need --per_device_train_batch_size 3 --gradient_accumulation_steps 2"):
        find(4, 1, per_gpu=6)
    for world_size in (3, 16):
        with pytest.raises(UserError, match=f"24 samples cannot be shared evenly by {world_size} processes"):
            find(world_size, 4)
    (folder / "settings.json").unlink()
    with pytest.raises(UserError, match="lacks settings.json"):
        find(2, 4)


def test_two_runs_cannot_share_a_folder(tmp_path):
    code = f"from aha.core.environment import lock_folder; lock_folder({str(tmp_path)!r})"
    with lock_folder(tmp_path):
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False)
    assert process.returncode != 0 and "another run is writing to" in process.stderr


# ---- optimizer ----


def test_stochastic_rounding_is_right_on_average():
    torch.manual_seed(0)
    value = torch.full((200_000,), 1.0 + 1 / 1024)  # a quarter of the way to the next bfloat16
    rounded = stochastic_bfloat16(value).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1 + 1 / 1024, abs=5e-5)


def fit(dtype: torch.dtype, optimizer_class) -> float:
    """Distance to the solution of a small regression after 400 steps of 2e-5, over the distance at the start."""
    torch.manual_seed(1)
    start, target = torch.randn(32, 32) * 0.02, torch.randn(32, 32) * 0.02
    weight = nn.Parameter(start.to(dtype, copy=True))
    optimizer = optimizer_class([weight], lr=2e-5, weight_decay=0.0)
    for _ in range(400):
        x = torch.randn(8, 32)
        (x @ (weight.float() - target)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return ((weight.detach().float() - target).norm() / (start - target).norm()).item()


def test_low_memory_adamw_follows_adamw():
    exact = fit(torch.float32, torch.optim.AdamW)
    assert fit(torch.float32, LowMemoryAdamW) == pytest.approx(exact, rel=2e-3)
    assert fit(torch.bfloat16, LowMemoryAdamW) == pytest.approx(exact, rel=2e-3)
    assert fit(torch.bfloat16, torch.optim.AdamW) > exact + 0.05  # what it is for: steps lost in rounding


def test_compiled_update_keeps_what_rounding_left_over():
    """A compiler that fuses leaves out float32 -> bfloat16 -> float32: the remainder was zero on GPUs, and small steps were lost."""

    def one_step(function):
        torch.manual_seed(0)
        weight, grad = torch.randn(512).to(torch.bfloat16), torch.randn(512).to(torch.bfloat16)
        rest = torch.zeros_like(weight)
        scalars = (torch.tensor(value) for value in (2e-5, 10.0, 1000.0))
        function(weight, grad, torch.zeros_like(weight), torch.zeros_like(weight), rest, *scalars, 0.9, 0.999, 1e-8, 0.0)
        return weight, rest

    (weight, rest), (compiled_weight, compiled_rest) = one_step(update), one_step(torch.compile(update, dynamic=True))
    assert rest.count_nonzero() > 500
    assert torch.equal(weight, compiled_weight) and torch.equal(rest, compiled_rest)


def test_low_memory_adamw_state_survives_saving():
    def run(interrupt):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8, 8))
        optimizer = LowMemoryAdamW([weight], lr=1e-3)
        for step in range(6):
            if interrupt and step == 3:
                saved = optimizer.state_dict()
                optimizer = LowMemoryAdamW([weight], lr=1e-3)
                optimizer.load_state_dict(saved)
            (weight**2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.state[weight]["exp_avg_sq"].dtype == torch.bfloat16
        return weight.detach()

    assert torch.equal(run(False), run(True))


# ---- 4-bit weights ----


@pytest.mark.parametrize("columns", [64, 160, 192])
def test_four_bit_weights_are_near_and_stable(columns):
    torch.manual_seed(0)
    weight = torch.randn(48, columns)
    levels = torch.tensor(LEVELS)
    restored = dequantize(*quantize(weight), levels, torch.float32)
    assert ((restored - weight).square().mean().sqrt() / weight.std()).item() < 0.1  # NF4 on normal data: 9%
    again = dequantize(*quantize(restored), levels, torch.float32)
    assert torch.equal(again, restored)


# ---- compiled layers ----


class LowRankLayer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base, self.down, self.up = nn.Linear(16, 16), nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.dropout = SeededDropout(0.5, torch.tensor(7, dtype=torch.int32))

    def forward(self, x):
        hidden = torch.nn.functional.silu(self.base(x))
        return x + self.up(self.down(self.dropout(hidden)))


def test_recomputation_uses_the_same_dropout():
    """The output is linear in `up`: the gradient times the weight must give what the weight contributed, for the same dropout mask."""
    layer = LowRankLayer()
    function = torch.compile(run_and_recompute, backend="aot_eager", dynamic=True)  # the default one takes minutes on a CPU
    x = torch.randn(1, 12, 16, requires_grad=True)

    def loss():
        return (function(layer, x) * torch.linspace(0, 1, 16)).sum()

    value = loss()
    value.backward()
    contribution = (layer.up.weight.grad * layer.up.weight).sum().item()
    with torch.no_grad():
        layer.up.weight.zero_()
    assert value.item() - loss().item() == pytest.approx(contribution, rel=1e-4)


def test_fused_tower_computes_the_patches_that_pooling_looks_at():
    model = AhaModel.from_base(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"))
    frames = torch.randint(0, 256, (3, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = model.used_patches(model.tower_features(frames))
    model.fuse_vision()
    after = model.tower_features(frames)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert model.project(after).shape == (3, 49, model.config.hidden_size)
    layer = model.model.vision_tower.vision_tower["vision_model"].encoder.layers[0]
    x = torch.randn(2, 5, layer.mlp.fc1.in_features)
    assert fused_mlp(layer.mlp, x).shape == x.shape


def test_a_model_whose_word_embeddings_are_on_the_host_is_the_same():
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/mmduet-adapter")
    model = AhaModel.from_base(base, adapter).to_aha()
    ids = torch.tensor([[1, 5, 9, 3]])
    before = model(ids, None).scores().relevance
    embeddings_on_host(model)
    assert isinstance(model.get_input_embeddings(), HostEmbedding) and model.get_input_embeddings() is model.model.embed_tokens
    assert torch.equal(model(ids, None).scores().relevance, before)


def test_what_waits_on_the_host_changes_nothing():
    table = nn.Embedding(9, 4)
    ids = torch.tensor([[1, 8, 3]])
    assert torch.equal(HostEmbedding(table)(ids), table(ids)) and not list(HostEmbedding(table).parameters())
    layer, x = LowRankLayer(), torch.randn(1, 12, 16)
    kept, gradients = [], []
    for context in (contextlib.nullcontext(), inputs_on_host((1, 12, 16))):
        layer.zero_grad()
        with context:
            output = layer(x.clone().requires_grad_())
        kept.append(output)
        output.square().sum().backward()
        gradients.append(layer.up.weight.grad)
    assert torch.equal(*kept) and torch.equal(*gradients)


def test_compiled_layer_keeps_only_its_input_for_the_backward_pass():
    layer, x = LowRankLayer(), torch.randn(1, 12, 16, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.compile(run_and_recompute, dynamic=True)(layer, x)
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    assert [t.shape for t in kept if t.numel() > 1 and t.data_ptr() not in own] == [x.shape]


def test_seeded_dropout_is_dropout():
    x = torch.ones(300, 1000)
    seeds = torch.zeros(3, dtype=torch.int32).random_(-(2**31), 2**31 - 1, generator=torch.Generator().manual_seed(0))
    masks = [SeededDropout(0.1, seed)(x) > 0 for seed in seeds]
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.9, abs=0.003)
    together = torch.stack([m.flatten().float() for m in masks] + [masks[0].flatten().float().roll(1)])
    assert (torch.corrcoef(together) - torch.eye(4)).abs().max() < 0.01
    dropout = SeededDropout(0.1, torch.tensor(0, dtype=torch.int32))
    assert dropout(x).mean().item() == pytest.approx(1, abs=0.004)
    assert torch.equal(dropout.eval()(x), x)


# ---- merging ----


def test_merged_folder_gives_the_same_scores(tmp_path, capsys):
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
    arguments = [
        "--llm_pretrained",
        str(base),
        "--lora_pretrained",
        str(adapter),
        "--output",
        str(tmp_path / "merged"),
        "--dtype",
        "float32",
    ]
    merge_main(arguments)
    separate = AhaModel.from_base(base, adapter, merge=False)
    merged = AhaModel.from_pretrained(tmp_path / "merged")
    torch.manual_seed(0)
    features = torch.randn(3, 729, separate.config.vision.hidden_size)
    ids = torch.cat([torch.arange(20), torch.full((3 * 49,), separate.config.image_token_index)])[None]
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, vision_features=features).scores() for m in (merged, separate))
    assert torch.allclose(ours.relevance, theirs.relevance, atol=1e-5)
    assert torch.allclose(ours.uncertainty, theirs.uncertainty, atol=1e-5)
    assert "library_name: aha-video" in (tmp_path / "merged/README.md").read_text()
    with pytest.raises(UserError, match="not empty"):
        merge_main(arguments)


def test_card_names_data_and_trained_videos(tmp_path):
    settings_ = {
        "model": {"lora_r": 16}, "data": {"fold": 0}, "training": {"learning_rate": 2e-5},
        "mixture": [{"name": "tvsum", "type": "tvsum", "samples": 40, "fps": 1, "max_num_frames": 400, "weight": 1.0}],
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings_))
    (tmp_path / "trained_on_videos.json").write_text('["a", "b"]')
    (tmp_path / "train.log").write_text('{"step": 3, "loss": 0.5, "lm_weighted": 0.1}\n{"step": 3, "eval_kendall_tau": 0.2}\n')
    metrics = {"protocols": {"corr_full": {"kendall": {"mean": 0.1234}}}}
    card = model_card(tmp_path, base="org/base", merged=False, metrics=metrics)
    for text in ("base_model: org/base", "40 samples", "a, b", "corr_full, kendall | 0.1234", "eval_kendall_tau | 0.2", "loss | 0.5000"):
        assert text in card
    with pytest.raises(UserError, match="no protocols"):
        model_card(tmp_path, base="org/base", merged=False, metrics={})


@pytest.mark.parametrize("name, expected", [
    ("lmms-lab/llava-onevision-qwen2-7b-ov", "llava-onevision-qwen2-7b-ov"),
    ("/data/llava-onevision-qwen2-7b-ov/", "llava-onevision-qwen2-7b-ov"),
    ("/c/hub/models--lmms-lab--llava-onevision-qwen2-7b-ov/snapshots/0a1b", "llava-onevision-qwen2-7b-ov"),
])  # fmt: skip
def test_base_names(name, expected):
    assert base_name(name) == expected
