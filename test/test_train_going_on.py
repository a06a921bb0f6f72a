"""Going on from a checkpoint with as many GPUs and with another number: random states, the optimizer's parts, the benchmark of it."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from paths import REPO

from aha.errors import UserError
from aha.training.randomness import load_states, save_states, seed_states
from aha.training.resize import KINDS, Parts
from aha.training.trainer import AhaTrainer


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


@pytest.fixture
def gpus(monkeypatch):
    """States of GPUs by number, in place of torch's; those that a process does not see cannot be asked for."""
    states: dict[int, torch.Tensor] = {}

    def write(state: torch.Tensor, device: torch.device) -> None:
        assert device.index in states
        states[device.index] = state

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", write)
    return states


def trainer_of(rank: int, world_size: int, step: int = 5) -> SimpleNamespace:
    args = SimpleNamespace(process_index=rank, world_size=world_size, device=torch.device("cpu"), seed=42)
    return SimpleNamespace(args=args, state=SimpleNamespace(global_step=step))


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_rank_gets_its_own_gpu_back_however_many_it_sees(gpus, world_size, tmp_path):
    """Saved where every process sees four GPUs, set back where each sees one alone."""
    for number in range(4):
        gpus[number] = torch.full((16,), number, dtype=torch.uint8)
    expected = []
    for rank in range(world_size):
        seed_states(1, 1, rank)
        save_states(tmp_path, rank, world_size, torch.device("cuda", rank))
        expected.append(drawn())
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(4)]
    )
    for rank in range(world_size):
        gpus.clear()
        gpus[0] = torch.zeros(16, dtype=torch.uint8)
        load_states(tmp_path, rank, world_size, torch.device("cuda", 0))
        assert drawn() == expected[rank] and gpus[0].tolist() == [rank] * 16


def test_states_that_transformers_wrote_are_read(gpus, tmp_path):
    """The states of all GPUs that the process saw, in a list: of two nodes of two."""
    for rank in range(4):
        seed_states(2, 2, rank)
        save_states(tmp_path, rank, 4, torch.device("cpu"))
        path = tmp_path / f"rng_state_{rank}.pth"
        states = torch.load(path, weights_only=False)
        states["cuda"] = [torch.full((16,), 10 * rank + number, dtype=torch.uint8) for number in range(2)]
        torch.save(states, path)
    gpus[3] = torch.zeros(16, dtype=torch.uint8)
    load_states(tmp_path, 3, 4, torch.device("cuda", 3))
    assert gpus[3].tolist() == [31] * 16


def test_other_ranks_go_on_with_states_of_their_own(tmp_path, capfd):
    """With as many ranks the states are those of the files; with another number they come from seed, step and rank, without a warning."""
    for rank in range(4):
        seed_states(7, 7, rank)
        save_states(tmp_path, rank, 4, torch.device("cpu"))
    (tmp_path / "complete.json").write_text(json.dumps({"world_size": 4, "files": []}))

    def going_on(rank: int, world_size: int, step: int = 5) -> tuple[float, ...]:
        torch.manual_seed(42)  # as a run starts
        AhaTrainer._load_rng_state(trainer_of(rank, world_size, step), str(tmp_path))
        return tuple(drawn())

    same = [going_on(rank, 4) for rank in range(4)]
    for rank in range(4):
        seed_states(7, 7, rank)
        assert same[rank] == tuple(drawn())
    other = [going_on(rank, ranks, step) for ranks in (2, 8) for step in (5, 6) for rank in range(ranks)]
    assert other[:2] == [going_on(rank, 2) for rank in range(2)]  # the same again
    assert len(set(other)) == 16  # by step and rank; 2 and 8 ranks have the first two in common
    torch.manual_seed(42)
    start = float(torch.rand(()))
    assert all(values[2] != start for values in other)
    AhaTrainer._load_rng_state(trainer_of(0, 2), None)
    assert "RNG" not in "".join(capfd.readouterr())


def test_a_rank_writes_the_state_of_its_own_gpu(gpus, tmp_path):
    gpus[1] = torch.ones(16, dtype=torch.uint8)
    trainer = trainer_of(1, 2)
    trainer.args.device = torch.device("cuda", 1)
    AhaTrainer._save_rng_state(trainer, str(tmp_path))
    assert torch.load(Path(tmp_path) / "rng_state_1.pth", weights_only=False)["cuda"].tolist() == [1] * 16


# ---- the optimizer's parts of other ranks ----


SIZES = {"a.weight": 7, "b.weight": 12, "c.weight": 1, "d.weight": 10}


def whole_values() -> dict[str, dict[str, torch.Tensor]]:
    """Values of each parameter by kind, no two equal."""
    numbers = torch.arange(3.0 * sum(SIZES.values()))
    return {
        kind: dict(zip(SIZES, numbers[k * len(numbers) // 3 : (k + 1) * len(numbers) // 3].split(list(SIZES.values()))))
        for k, kind in enumerate(KINDS)
    }


def write_parts(folder: Path, stage: int, ranks: int) -> None:
    """A checkpoint's files of `ranks` ranks as DeepSpeed lays them out: one flat tensor cut anywhere (1, 2), or each parameter cut evenly (3)."""
    values = whole_values()
    for rank in range(ranks):
        if stage < 3:
            total = sum(SIZES.values())
            share = -(-total // ranks)
            mine = range(rank * share, min((rank + 1) * share, total))
            slices, begin = {}, 0
            for name, size in SIZES.items():
                first, last = max(begin, mine.start), min(begin + size, mine.stop)
                if first < last:
                    slices[name] = SimpleNamespace(start=first - mine.start, numel=last - first)
                begin += size
            flat = {kind: torch.cat([*values[kind].values(), torch.zeros(ranks)])[mine.start : mine.start + share] for kind in KINDS}
            moments = {kind: flat[kind].clone() for kind in KINDS[1:]}
            state = {
                "param_slice_mappings": [slices], "single_partition_of_fp32_groups": [flat["fp32"].clone()], "loss_scaler": None,
                "base_optimizer_state": {"state": {0: {"step": torch.tensor(5.0), **moments}}, "param_groups": [{"lr": 0.1}]},
            }  # fmt: skip
        else:
            cut = {
                kind: torch.cat([padded(v, ranks)[rank * -(-len(v) // ranks) :][: -(-len(v) // ranks)] for v in values[kind].values()])
                for kind in KINDS
            }
            moments = {kind: cut[kind] for kind in KINDS[1:]}
            state = {
                "fp32_flat_groups": [cut["fp32"]], "loss_scaler": None,
                "optimizer_state_dict": {"state": {0: {"step": torch.tensor(5.0), **moments}}, "param_groups": [{"lr": 0.1}]},
            }  # fmt: skip
            shapes = [{name: torch.Size([size]) for name, size in SIZES.items()}]
            torch.save({"param_shapes": shapes}, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": state}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def padded(values: torch.Tensor, ranks: int) -> torch.Tensor:
    return torch.cat([values, torch.zeros(-len(values) % ranks)])


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 3, 4, 12])
def test_any_range_is_put_together_from_the_parts_of_any_number_of_ranks(stage, ranks, tmp_path):
    write_parts(tmp_path, stage, ranks)
    parts, values = Parts(tmp_path, stage), whole_values()
    for kind in KINDS:
        for name, size in SIZES.items():
            for begin in range(size + 1):
                for length in range(size + 3):
                    found = parts.read(name, kind, begin, length)
                    assert torch.equal(found, values[kind][name][begin : begin + length]), (kind, name, begin, length)
    assert parts.step == 5 and "loss_scaler" in parts.common
    groups = parts.common["param_groups"] if stage < 3 else parts.common["optimizer_state_dict"]["param_groups"]
    assert groups == [{"lr": 0.1}]
    assert not any(kind in str(parts.common) for kind in KINDS)  # what all ranks read is small


# ---- the benchmark of going on ----


@pytest.mark.parametrize("together", [False, True])
def test_what_was_measured_is_printed_at_once_and_a_failure_stops_nothing_else(together, tmp_path, monkeypatch, capsys):
    """Runs that end at once: from 4 to 4 GPUs fails, the others are measured; from 2 to 4 goes on from what 4 to 2 saved."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import train_scaling

    def launch(run, first_gpu=0):
        begin = int(run.start.name.rpartition("-")[2])
        assert run.start.parent.name.startswith("run-4x1" if begin == 3 else "run-going-4-2")
        run.output.mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": 2.0 + (step == 8) * 0.02}) for step in range(begin + 1, 9)]
        (run.output / "loss_history.jsonl").write_text("\n".join(lines) + "\n")
        run.log.write_text(f"resuming from {run.start}\n")
        if run.save_steps:
            (run.output / "checkpoint-6").mkdir()
            (run.output / "checkpoint-6" / "complete.json").touch()

    def finish(run):
        if run.name == "going-4-4":
            raise UserError("the run on 4 GPUs failed")

    monkeypatch.setattr(train_scaling.Run, "launch", launch)
    monkeypatch.setattr(train_scaling.Run, "finish", finish)
    args = SimpleNamespace(
        gpus=[4], accumulation=1, steps=8, save_steps=3, resume=[(2, 4), (4, 4), (4, 2)], kill=False, together=together, folder=tmp_path,
        deepspeed="zero2.json", label="", cpu=True, nodes=1, flags=[], mixture=tmp_path / "m.json",
    )  # fmt: skip
    reference = {"losses": {str(step): 2.0 for step in range(1, 9)}}
    with pytest.raises(UserError, match="the run on 4 GPUs failed"):
        train_scaling.resume(args, reference)
    said = sorted(capsys.readouterr().out.splitlines())
    assert [line.partition(" (")[0] for line in said] == [
        "from 2 to 4 GPUs: 2 steps, loss difference 1.00e-02",
        "from 4 to 2 GPUs: 5 steps, loss difference 1.00e-02",
        "from 4 to 4 GPUs: the run on 4 GPUs failed",
    ]
    assert said[0].endswith("losses 7:2.00000 8:2.02000") and "resuming from" in said[0]
    args.resume = [(2, 4)]  # what is there is not run again
    results, killed = train_scaling.resume(args, reference)
    assert killed is None and [result["from"] for result in results] == [2]


@pytest.mark.parametrize("more", ([], ["--kill"]))
def test_the_benchmark_without_going_on_ends_with_its_json_line(more, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import train_scaling

    measured = {"sample_s": 1.0, "frames_per_s": 60.0, "imbalance": 0.0, "new_shapes": 0, "losses": {"1": 2.0}, "flags": []}
    ended = {"seconds_to_end": 4.0, "exit_code": 1, "last_lines": []}
    monkeypatch.setattr(train_scaling, "prepare_checkpoint", lambda args: None)
    monkeypatch.setattr(train_scaling, "prepare_videos", lambda args: None)
    monkeypatch.setattr(train_scaling, "train_all", lambda args: {count: {**measured} for count in args.gpus})
    monkeypatch.setattr(train_scaling, "kill_one_rank", lambda args: ended)
    train_scaling.main(["--size", "tiny", "--cpu", "--gpus", "1", "2", "--folder", str(tmp_path), *more])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["resumed"] == [] and last["killed"] == (ended if more else None)
    assert [run["efficiency"] for run in last["runs"]] == [1.0, 0.5]
