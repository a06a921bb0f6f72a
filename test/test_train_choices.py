"""What a run chooses by itself: the fast path, how many layers are recomputed, who gets which sample; and where its time went."""

import json
import statistics
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPO
from torch import nn

from aha.errors import UserError
from aha.training.data import deal, work_of
from aha.training.machine import GIB, OUTSIDE_GIB, Machine, choose, without_deepspeed
from aha.training.optimizer import LowMemoryAdamW
from aha.training.recompute import Cost, Recompute, same_for_all, trained_bytes, weight_bytes
from aha.training.resize import place_state
from aha.training.run import limit_memory
from aha.training.speed import Sections, summary_line

H100, SMALL = Machine("NVIDIA H100", 79.0, True), Machine("NVIDIA L4", 22.0, True)
AUTO = {
    "compile_layers": "auto", "low_memory_optimizer": "auto", "gradient_checkpointing": "auto", "max_memory": None, "sixteen_bit": True,
    "zero_stage": 2, "attention": "sdpa",
}  # fmt: skip


def chosen(machine: Machine, **flags):
    choices = choose(machine, **{**AUTO, **flags})
    return choices.compile_layers, choices.low_memory_optimizer, choices.recompute


def test_the_fast_path_needs_no_flag_and_every_choice_has_one():
    assert chosen(H100) == (True, False, "auto")
    assert chosen(SMALL) == (True, True, "auto")
    assert chosen(H100, max_memory=23.5) == (True, True, "auto")
    assert chosen(H100, zero_stage=3) == (True, False, "auto") and not chosen(H100, zero_stage=3, compile_layers="False")[0]
    assert chosen(SMALL, zero_stage=3) == (True, False, "auto")  # AdamW with 16-bit state is not for ZeRO-3
    assert chosen(Machine("NVIDIA H100", 79.0, compiler=False)) == (False, False, "auto")
    assert chosen(Machine(), sixteen_bit=False) == (False, False, "all")
    assert chosen(H100, compile_layers="False", low_memory_optimizer="True", gradient_checkpointing="7") == (False, True, 7)
    assert chosen(H100, gradient_checkpointing="False")[2] == "none" and chosen(H100, gradient_checkpointing="True")[2] == "all"
    assert "compiled layers, attention sdpa, recomputing what memory forces, AdamW, ZeRO stage 2" in choose(H100, **AUTO).line()
    assert (
        "layers as they are, attention sdpa, recomputing nothing, AdamW, ZeRO stage 3"
        in choose(H100, **{**AUTO, "zero_stage": 3, "gradient_checkpointing": "0", "compile_layers": "False"}).line()
    )


@pytest.mark.parametrize("flag, value", [("compile_layers", "perhaps"), ("gradient_checkpointing", "some"), ("max_memory", 1.5)])
def test_a_choice_that_means_nothing_is_refused(flag, value):
    with pytest.raises(UserError, match=f"--{flag} is {value}"):
        choose(H100, **{**AUTO, flag: value})


def test_one_small_card_trains_without_deepspeed(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    configs = {}
    for name, zero in {"two": {"stage": 2}, "three": {"stage": 3}, "offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}.items():
        configs[name] = tmp_path / f"{name}.json"
        configs[name].write_text(json.dumps({"zero_optimization": zero}))
    flags = ["--bf16", "True", "--deepspeed", str(configs["two"]), "--max_steps", "3"]
    without = ["--bf16", "True", "--max_steps", "3"]
    assert without_deepspeed(flags, SMALL) == without
    assert without_deepspeed([*flags, "--max_memory=23.5"], H100) == [*without, "--max_memory=23.5"]
    assert without_deepspeed(flags, H100) == flags and without_deepspeed(flags, Machine()) == flags
    for kept in (["--low_memory_optimizer", "False"], ["--deepspeed", str(configs["three"])], ["--deepspeed", str(configs["offload"])]):
        assert without_deepspeed([*flags, *kept], SMALL) == [*flags, *kept]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert without_deepspeed(flags, SMALL) == flags


# ---- recomputation ----


def recompute(mode="auto", limit=80 * GIB, layers=28, later=0.0) -> Recompute:
    model = nn.Module()
    model.decoder_layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(layers))
    return Recompute(model, mode, Cost(kept=187e3, inputs=7e3, moment=526e3), limit, later)


def test_as_many_layers_keep_their_activations_as_fit():
    """Figures of an H100 with a 7B model of 120 frames: 23.6 GiB with all layers recomputed, 52.5 with none."""
    plan, resident = recompute(), 19.5 * GIB
    assert plan.plan(5952, resident) == 0
    assert recompute(limit=24 * GIB).plan(5952, resident) == 28
    half = recompute(limit=42 * GIB).plan(5952, resident)
    assert 8 < half < 20
    for limit in (30, 40, 50):
        plan = recompute(limit=limit * GIB)
        count = plan.plan(5952, resident)
        kept = 5952 * ((28 - count) * 187e3 + count * 7e3 + 526e3)
        assert resident + kept <= 0.94 * (limit - OUTSIDE_GIB) * GIB < resident + kept + 5952 * 187e3
    assert recompute(limit=60 * GIB).plan(19640, resident) > recompute(limit=60 * GIB).plan(5952, resident)
    plan.apply(5)
    assert [layer.recomputed for layer in plan.layers] == [True] * 5 + [False] * 23


def test_what_is_to_come_counts_until_the_first_step_is_over():
    plan = recompute(limit=60 * GIB, later=20 * GIB)
    before = plan.plan(5952, 19.5 * GIB)
    plan.step_ended()
    assert plan.plan(5952, 19.5 * GIB) < before


def test_the_formula_is_corrected_by_what_a_batch_took():
    plan = recompute(limit=60 * GIB)
    plan.tokens = 1000
    plan.apply(8)
    plan.learn_kept(1000 * (20 * 250e3 + 8 * 7e3))
    assert plan.cost.kept == pytest.approx(250e3)
    plan.learn_moment(1000 * (20 * 250e3 + 8 * 7e3 + 300e3))
    assert plan.moments == {False: pytest.approx(300e3), True: 526e3}
    plan.learn_moment(1000 * (20 * 250e3 + 8 * 7e3 + 900e3))
    plan.learn_moment(1000 * (20 * 250e3 + 8 * 7e3 + 100e3))
    assert plan.moments[False] == pytest.approx(900e3)
    plan.spill = True  # what waits on the host tells nothing of a batch whose inputs stay on the device
    plan.apply(28)
    plan.learn_moment(1000 * 200e3)
    assert plan.moments == {False: pytest.approx(900e3), True: pytest.approx(200e3)}


def test_out_of_memory_means_more_recomputation_for_batches_of_that_size():
    plan = recompute()
    for expected in (3, 6, 9):
        plan.tokens = 5000
        plan.apply(plan.plan(5000, 19 * GIB))
        assert plan.tighten()
        assert plan.plan(5000, 19 * GIB) == expected and plan.plan(6000, 19 * GIB) == expected
        assert plan.plan(4000, 19 * GIB) == 0
    plan.apply(28)
    plan.tokens = 5000
    assert plan.tighten() and not plan.spill  # all layers are recomputed: their inputs leave the device next
    assert plan.plan(5000, 19 * GIB) == 28 or plan.spill
    assert plan.spill and not plan.tighten()
    plan.plan(4000, 19 * GIB)
    assert not plan.spill
    fixed = recompute(mode=3)
    assert fixed.recomputed == 3 and not fixed.tighten()


def test_a_forward_pass_that_leaves_no_room_backwards_is_seen_before_it():
    plan = recompute(limit=60 * GIB)
    plan.tokens = 6000
    cap = (60 - OUTSIDE_GIB) * GIB
    assert plan.has_room(cap - 6000 * 526e3 - 1) and not plan.has_room(cap - 6000 * 526e3 + 1)
    assert recompute(mode="all").forward_ended(torch.device("cpu"))  # no planning: nothing to ask


@pytest.mark.parametrize("limit, reserved", [(23.5, 22.0), (16.0, 14.5), (48.0, 46.5)])
def test_reserved_memory_is_at_most_the_limit_less_what_lies_outside(monkeypatch, limit, reserved):
    """The allocator is told so itself, before the weights are loaded; the plan stays 6% below."""
    told = []
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda fraction, device: told.append(fraction * 80))
    run = SimpleNamespace(max_memory=limit, chosen=SimpleNamespace(memory_gib=limit), device="cuda:0")
    limit_memory(run)
    limit_memory(SimpleNamespace(max_memory=None, chosen=SimpleNamespace(memory_gib=80.0), device="cuda:0"))  # a whole card
    assert told == [pytest.approx(reserved)]
    plan = recompute(limit=limit * GIB)
    assert plan.cap == reserved * GIB and plan.planned == pytest.approx(0.94 * reserved * GIB)


def test_7b_with_120_frames_fits_a_card_of_24_gb(monkeypatch):
    """Arithmetic, not a measurement: weights without the embedding table, gradients and optimizer, and the moment of a layer fit under the
    cap when the layers' inputs wait on the host; on the device they would pass it."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import load_checkpoint
    from train_step import random_model

    monkeypatch.setitem(load_checkpoint.SIZES, "7b", {**load_checkpoint.SIZES["7b"], "num_hidden_layers": 1})  # the others are like it
    model = random_model("7b", torch.device("meta"), torch.bfloat16, 0, 0.05)
    layer, table = model.decoder_layers[0], model.get_input_embeddings().weight
    weights = weight_bytes(model) + 27 * weight_bytes(layer)
    later = sum(trained_bytes(part, zero=False, low_memory=True, world_size=1) for part in [model, *[layer] * 27])
    assert weights / GIB == pytest.approx(15.0, abs=0.1) and later / GIB == pytest.approx(4.5, abs=0.1)
    tokens, cost = 5952, Cost.estimate(model.config, True, 2)
    whole = nn.Module()
    whole.decoder_layers = [layer] * 28

    def plan_of(limit):
        return Recompute(whole, "auto", cost, limit * GIB, later)

    plan = plan_of(23.5)
    assert not plan.fits(tokens, weights) and plan_of(80).fits(tokens, weights)
    resident = weights - table.numel() * table.element_size()
    assert plan.plan(tokens, resident) == 28 and plan.spill
    peak = resident + later + tokens * cost.moment
    assert peak < plan.cap < peak + tokens * 28 * cost.inputs


def test_zero3_fixes_one_number_of_layers_for_all_ranks():
    """7B on 4 GPUs, layers as they are: of a large card's memory all keep their activations, with the gathered weights that these hold; of
    80 GB some; of 24 GB hardly one. Longer samples leave fewer."""
    model = nn.Module()
    model.lm_head = nn.Linear(3584, 152064, bias=False, device="meta", dtype=torch.bfloat16)
    model.decoder_layers = nn.ModuleList(nn.Linear(3584, 65000, bias=False, device="meta", dtype=torch.bfloat16) for _ in range(28))
    cost = Cost(kept=407e3, inputs=7e3, moment=532e3)

    def count(memory: float, tokens: int = 6100) -> int:
        return same_for_all(model, cost, memory * GIB, 3.6e9, tokens, 4)

    assert count(139.8) == 0 and count(23.5) >= 26 and count(16) == 28
    assert 0 < count(79) < 28 and count(79) < count(50) < count(79, 19_700)
    kept = (28 - count(79)) * (6100 * 400e3 + 3584 * 65000 * 2)
    assert kept < 79 * GIB and cost.kept == 407e3
    assert same_for_all(model, cost, None, 0.0, 6100, 4) == 28  # nothing to plan with


# ---- equal work ----


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.randoms())
def test_ranks_get_equal_work_from_the_same_samples(world, batch_size, accumulation, random):
    lengths = [random.randint(1, 200) for _ in range(world * batch_size * accumulation)]
    items = list(range(len(lengths)))
    random.shuffle(items)
    dealt = deal(items, lengths, batch_size, world)
    assert sorted(dealt) == sorted(items) and dealt == deal(items, lengths, batch_size, world)
    batches = [dealt[k : k + batch_size] for k in range(0, len(dealt), batch_size)]
    rows = [batches[k : k + world] for k in range(0, len(batches), world)]
    longest_first = [lengths[i] for row in rows for i in sorted((i for batch in row for i in batch), key=lambda i: -lengths[i])]
    assert longest_first == sorted(lengths, reverse=True)  # similar ones at a time
    cost = [[work_of(max(lengths[i] for i in batch)) * batch_size for batch in row] for row in rows]
    work = [sum(row[rank] for row in cost) for rank in range(world)]
    assert max(work) - min(work) <= max(max(row) - min(row) for row in cost)
    busiest = work.index(max(work))
    for row in cost:  # no exchange of two batches of a micro-step would help
        for rank in range(world):
            less = row[busiest] - row[rank]
            assert max(work[busiest] - less, work[rank] + less) >= work[busiest]


def waiting(dealt, lengths, world):
    """Share of the ranks' time in which they wait for the busiest."""
    work = [sum(work_of(lengths[i]) for i in dealt[rank::world]) for rank in range(world)]
    return 1 - sum(work) / (max(work) * world)


def test_dealing_is_fairer_than_one_after_the_other():
    lengths = [(37 * i * i) % 211 for i in range(64)]
    dealt, plain = deal(range(64), lengths, 1, 4), sorted(range(64), key=lambda i: -lengths[i])
    assert waiting(dealt, lengths, 4) < waiting(plain, lengths, 4) / 20


def test_few_samples_a_rank_are_even_work_too():
    """4 ranks with 4 samples each, as long as TVSum's videos (83 to 400 frames): longest to the idlest alone leaves twice that waiting."""
    numbers = Random(0)
    shares = []
    for _ in range(40):
        lengths = [49 * numbers.randint(83, 400) + 60 for _ in range(16)]
        shares.append(waiting(deal(range(16), lengths, 1, 4), lengths, 4))
    assert statistics.mean(shares) < 0.015, shares


# ---- going on elsewhere ----


def test_step_counters_lie_where_the_optimizer_looks_for_them():
    """DeepSpeed's universal layout gives all parameters one counter, on the CPU; torch's fused AdamW refuses that on a GPU."""
    parameters = [nn.Parameter(torch.zeros(3, device="meta")) for _ in range(2)]
    for fused, place in ((True, "meta"), (False, "cpu")):
        optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters])
        shared = torch.tensor(5.0)
        for group in optimizer.param_groups:
            group["fused"] = fused
            optimizer.state[group["params"][0]] = {"step": shared}
            group["params"] = []  # as ZeRO-3 leaves them between two steps
        place_state(optimizer)
        steps = [optimizer.state[p]["step"] for p in parameters]
        assert [step.device.type for step in steps] == [place, place] and steps[0] is not steps[1]
    weight = nn.Parameter(torch.zeros(3))
    optimizer = LowMemoryAdamW([weight])
    optimizer.state[weight] = {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    place_state(optimizer)
    state = optimizer.state[weight]
    assert state["step"] == 5 and isinstance(state["step"], int) and state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16


# ---- where the time goes ----


def test_nested_sections_are_not_counted_twice(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("aha.training.speed.time", SimpleNamespace(perf_counter=lambda: now[0]))
    sections = Sections(torch.device("cpu"))
    with sections("decoder"):
        now[0] += 2
        with sections("vision"):
            now[0] += 4
        now[0] += 1
    now[0] += 8  # of no section
    with sections("loss"):
        pass
    seconds = sections.collect()
    assert {name: value for name, value in seconds.items() if value} == {"decoder": 3.0, "vision": 4.0}
    assert not any(sections.collect().values())
    line = summary_line({"vision": 0.25, "data": 0.25, "other": 0.5, "all": 1.0})
    assert line == "an optimizer step took 1.000 s: vision 0.250 s (25%), waiting for data 0.250 s (25%), other 0.500 s (50%)"
    line = summary_line({"data": 0.5, "all": 0.5}, imbalance=0.0123)
    assert line.endswith("waiting for data 0.500 s (100%); the busiest of the GPUs had 1.2% more to compute than the mean")


# ---- two settings compared ----


def test_numerics_name_the_first_step_and_tensor_that_differ(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import compare_numerics

    common = ["--size", "tiny", "--device", "cpu", "--dtype", "float32", "--frames", "2", "--steps", "2"]
    compare_numerics.main([*common, "--first", "plain", "--second", "compile=False,optimizer=adamw", "--tolerance", "1e-5"])
    assert "they do not part in 2 steps" in capsys.readouterr().out
    compare_numerics.main([*common, "--first", "compile=False", "--second", "compile=False"])
    assert "they do not part" in capsys.readouterr().out
    compare_numerics.main([*common, "--first", "compile=False,optimizer=adamw", "--second", "compile=False,optimizer=low_memory"])
    said = capsys.readouterr().out
    assert "they part in step 1 at weight " in said or "they part in step 2 at " in said
    values = {"output of layer 0": torch.ones(4), "loss": torch.ones(1)}
    other = {**values, "output of layer 0": torch.tensor([1.0, 1.0, 1.0, 1.1])}
    step, name, apart = compare_numerics.parting([values, values], [values, other], tolerance=1e-3)
    assert (step, name) == (2, "output of layer 0") and apart == pytest.approx(0.05)
    with pytest.raises(UserError, match="setting 'speed=11' is not known"):
        compare_numerics.setting("speed=11")


def test_the_rule_is_printed_line_by_line_and_all_runs_start_from_the_same_weights(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import compare_numerics
    from compare_numerics import Distance, rule

    common = [
        "--verdict",
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--frames",
        "2",
        "--steps",
        "2",
        "--second",
        "compile=False,optimizer=adamw",
    ]
    compare_numerics.main([*common, "--dtype", "float32"])  # nothing is rounded: float32 is plain itself
    *lines, last = capsys.readouterr().out.splitlines()
    facts = json.loads(last)
    assert (
        max(facts["distances"]["plain against float32"]["first_two"]) < 1e-6 and facts["distances"]["plain against itself"]["largest"] == 0
    )
    assert facts["distances"]["plain against other kernels"]["largest"] < 1e-5
    assert [line.rpartition(": ")[0] for line in lines if line.startswith(("first two", "median", "largest"))] == list(facts["rule"])
    compare_numerics.main([*common, "--dtype", "bfloat16"])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    apart = {what: distance["largest"] for what, distance in facts["distances"].items()}
    assert apart["plain against itself"] == 0 and apart["plain against float32"] > 1e-5 and apart["plain against other kernels"] > 1e-5
    plain = [Distance((0.0, 0.0), 0.0, 0.0), Distance((1e-4, 2e-3), 1e-3, 5e-3)]
    assert [kept for _, kept in rule(Distance((9e-4, 1e-3), 9e-3, 5e-3), plain)] == [True, True, True]
    assert [kept for _, kept in rule(Distance((1e-4, 1.1e-3), 1.1e-2, 5.1e-3), plain)] == [False, False, False]


# ---- several runs of a node ----


def test_runs_that_go_on_and_runs_beside_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    from train_scaling import difference, pairs_of, save_steps, side_by_side, steady_steps, steps_before_kill

    assert side_by_side([1, 2, 4, 8], True) == [[8], [4, 2, 1]] and side_by_side([1, 2, 4], True) == [[4], [2, 1]]
    assert side_by_side([1, 2, 4], False) == [[4], [2], [1]]
    assert pairs_of([], 4) == [(4, 4), (4, 2), (2, 4)] == pairs_of(["4-4", "4-2", "2-4"], 4)
    for word in ("3-1", "4", "4-8"):
        with pytest.raises(UserError, match="it is one of 4-4, 4-2, 2-4"):
            pairs_of([word], 4)
    for steps in range(3, 40):  # two checkpoints, each with steps to go on with
        assert save_steps(steps) > 0 and 2 * save_steps(steps) < steps
    assert [steps_before_kill(to_go) for to_go in (1, 2, 3, 4, 5, 9)] == [1, 1, 2, 2, 3, 7]
    assert difference({"3": 1.1, "4": 2.0}, {"1": 5.0, "3": 1.0, "4": 2.0}) == pytest.approx(0.1)
    for new, steady in (([4, 2, 0, 0], [2, 3]), ([4, 0, 1, 0], [3]), ([4, 2, 1, 1], [2, 3]), ([4, 1, 1, 1, 1, 0, 0, 1, 0], [5, 6, 8])):
        steps = [{"new_shapes": count, "step": i} for i, count in enumerate(new)]
        assert [step["step"] for step in steady_steps(steps)] == steady
