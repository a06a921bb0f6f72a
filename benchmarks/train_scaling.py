"""How training scales over the GPUs of a node, through scripts/train_on_tvsum.sh itself: random weights, generated TVSum-format videos.

    python benchmarks/train_scaling.py --size 7b --gpus 1 2 4 8 --steps 30 --folder /tmp/scaling          # an 8-GPU node
    python benchmarks/train_scaling.py --size 7b --gpus 1 --frames 120 --accumulation 8 --steps 6 --folder /tmp/scaling   # seconds a sample
    python benchmarks/train_scaling.py --size tiny --gpus 1 2 --steps 4 --folder /tmp/scaling --cpu       # dry run, processes for GPUs

Each count trains twice: with the same samples per GPU (one), which gives the scaling efficiency, and with the same global batch as the
largest count, which must give the same loss curve (LoRA dropout is off: its masks differ between ranks). --kill also ends one rank of
the largest count with SIGKILL in mid-training and measures how long the job takes to end. --resume also saves at half time with the
largest count (7 GB for 7b), then goes on from there, with as many GPUs and with half as many. The checkpoint (16 GB for 7b) and the videos
are made once and kept in --folder; finished runs of the table are not repeated. Prints a table and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import psutil
import torch
from load_checkpoint import SIZES, write_checkpoint

from aha.core.files import read_json, write_json
from aha.demo.dataset import make_dataset, mixture
from aha.demo.run import ADAPTER
from aha.errors import UserError, run_command

ROOT = Path(__file__).resolve().parents[1]
SHORTEST_S = 30  # seconds of the shortest generated video


def prepare_checkpoint(args: argparse.Namespace) -> None:
    """Base and adapter of random weights in --folder."""
    if not (args.folder / "checkpoint" / "complete").is_file():
        write_checkpoint(args.folder / "checkpoint", args.size, "cpu" if args.cpu else "cuda")
        for name in ("llava-base", "mmduet-adapter"):
            for path in ADAPTER.iterdir():  # the demo's tokenizer: the words do not matter here
                if not path.name.startswith("adapter"):
                    shutil.copy(path, args.folder / "checkpoint" / name / path.name)
        (args.folder / "checkpoint" / "complete").touch()


def prepare_videos(args: argparse.Namespace) -> None:
    """Videos and mixture file in --folder."""
    official = make_dataset(args.folder / "tvsum", 0, min(os.cpu_count() or 1, 16))
    fps, most = (args.fps, 400) if args.frames is None else (args.frames / SHORTEST_S, args.frames)
    write_json(args.mixture, mixture(official, fps, max_num_frames=most))


def command(args: argparse.Namespace, output: Path, accumulation: int, save_steps: int = 0) -> list[str]:
    checkpoint = args.folder / "checkpoint"
    flags = [
        "bash", str(ROOT / "scripts/train_on_tvsum.sh"), "--llm_pretrained", str(checkpoint / "llava-base"), "--lora_pretrained",
        str(checkpoint / "mmduet-adapter"), "--dataset_config", str(args.mixture), "--output_dir", str(output),
        "--deepspeed", args.deepspeed, "--max_steps", str(args.steps), "--num_train_epochs", "1000", "--gradient_accumulation_steps",
        str(accumulation), "--lora_dropout", "0", "--report_to", "none", "--disable_tqdm", "True", *args.flags,
    ]  # fmt: skip
    if save_steps:
        flags += ["--save_steps", str(save_steps)]
    else:
        flags += ["--save_strategy", "no", "--resume_from_checkpoint", "none"]
    return flags + (["--use_cpu", "True", "--bf16", "False"] if args.cpu else [])


def start(args: argparse.Namespace, count: int, flags: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "NUM_GPUS": str(count), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1" if args.cpu else "4"}
    with log.open("w") as file:
        return subprocess.Popen(flags, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def losses_of(output: Path) -> list[float]:
    return [line["loss"] for line in lines_of(output / "loss_history.jsonl")]


def difference(losses: list[float], reference: list[float]) -> float:
    """The largest relative difference of a step."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference))


def steady_steps(steps: list[dict]) -> list[dict]:
    """Log lines without the first steps, and without those that start an epoch: they wait for the readers to start."""
    later = [s for before, s in zip(steps, steps[1:]) if math.ceil(s["epoch"]) == math.ceil(before["epoch"])]
    return later[min(4, len(later) // 2) :] or steps[-1:]


def train(args: argparse.Namespace, count: int, accumulation: int) -> dict:
    """One run on `count` GPUs -> its losses, median step time and throughput after the first steps, and wall time. Raises UserError."""
    output = args.folder / f"run-{count}x{accumulation}-{Path(args.deepspeed).stem}{args.label}"
    flags = command(args, output, accumulation)
    done = output / "benchmark.json"
    if done.is_file() and json.loads(done.read_text())["flags"] == flags:
        return json.loads(done.read_text())
    shutil.rmtree(output, ignore_errors=True)
    log = args.folder / f"{output.name}.log"
    begin = time.perf_counter()
    finish(args, count, flags, log)
    steps = [line for line in lines_of(output / "train.log") if "step_time_s" in line]
    steady = steady_steps(steps)
    seconds = sum(s["step_time_s"] for s in steady)
    result = {
        "gpus": count, "accumulation": accumulation, "wall_s": round(time.perf_counter() - begin, 1), "flags": flags,
        "losses": losses_of(output),
        **{name: statistics.median(s[name] for s in steady) for name in ("step_time_s", "data_wait_s")},
        **{name: sum(s[name] * s["step_time_s"] for s in steady) / seconds for name in ("frames_per_s", "tokens_per_s")},
        "sample_s": statistics.median(s["step_time_s"] for s in steady) / accumulation, "first_step_s": steps[0]["step_time_s"],
        **{name: max(s[name] for s in steps) for name in ("memory_gib", "memory_reserved_gib", "mfu", "hfu") if name in steps[-1]},
        "step_seconds": lines_of(output / "train.log")[-1].get("step_seconds"),
        "chosen": read_json(output / "settings.json", "settings")["chosen"],
    }  # fmt: skip
    write_json(done, result)
    return result


def finish(args: argparse.Namespace, count: int, flags: list[str], log: Path) -> None:
    if start(args, count, flags, log).wait():
        raise UserError(f"the run on {count} GPUs failed: {log.read_text(errors='replace').strip().splitlines()[-1]} (all of it: {log})")


def resume(args: argparse.Namespace, count: int) -> list[dict]:
    """Losses of a run on `count` GPUs, and of runs that go on from its checkpoint: on as many, and on half as many."""
    output, half = args.folder / "run-resumed", args.steps // 2
    shutil.rmtree(output, ignore_errors=True)
    results: list[dict] = []
    for gpus, accumulation in ((count, args.accumulation), (count, args.accumulation), (count // 2, 2 * args.accumulation)):
        log = args.folder / f"run-resumed-{len(results)}.log"
        begin = time.perf_counter()
        finish(args, gpus, command(args, output, accumulation, save_steps=half), log)
        result = {"gpus": gpus, "wall_s": round(time.perf_counter() - begin, 1), "losses": losses_of(output)}
        result["said"] = next((line for line in log.read_text().splitlines() if line.startswith("resuming from")), None)
        results.append(result)
        result["loss_difference"] = difference(result["losses"], results[0]["losses"])
        for folder in output.glob("checkpoint-*"):
            if folder.name != f"checkpoint-{half}":
                shutil.rmtree(folder)
    return results


def kill_one_rank(args: argparse.Namespace, count: int) -> dict:
    """Seconds from SIGKILL of the last rank until the whole job has ended, and the last lines that it printed."""
    output, log = args.folder / "run-killed", args.folder / "run-killed.log"
    shutil.rmtree(output, ignore_errors=True)
    process = start(args, count, command(args, output, args.accumulation), log)
    while len(lines_of(output / "loss_history.jsonl")) < 2:
        if process.poll() is not None:
            raise UserError(f"the run to be killed ended by itself; see {log}.")
        time.sleep(0.2)
    ranks = [child for child in psutil.Process(process.pid).children() if "aha.train" in child.cmdline()]
    begin = time.perf_counter()
    ranks[-1].kill()
    code = process.wait()
    return {"seconds_to_end": round(time.perf_counter() - begin, 1), "exit_code": code, "last_lines": log.read_text().splitlines()[-3:]}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("train_scaling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7b", choices=SIZES, help="model dimensions (default %(default)s)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8], help="counts of GPUs (default %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each run (default %(default)s)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of the videos (default %(default)s: 75 a sample)")
    parser.add_argument("--frames", type=int, help="frames of every sample (default: as long as the videos are)")
    parser.add_argument("--accumulation", type=int, default=1, help="samples per GPU in an optimizer step (default %(default)s)")
    parser.add_argument("--deepspeed", default=str(ROOT / "configs/deepspeed/zero1.json"), help="DeepSpeed config (default: ZeRO-1)")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept (20 GB and the saved runs for 7b)")
    parser.add_argument("--kill", action="store_true", help="also kill one rank")
    parser.add_argument("--resume", action="store_true", help="also save, and go on with as many GPUs and with half as many")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU in place of GPUs")
    parser.add_argument("--flags", default="", help="more flags for the script, in one string")
    args = parser.parse_args(argv)
    args.flags = shlex.split(args.flags)
    args.label = "".join(re.sub(r"[^a-z0-9.]+", "-", text.lower()) for text in [f"-{args.frames or 'all'}", *args.flags])
    args.folder = args.folder.resolve()
    args.mixture = args.folder / f"mixture-{args.frames or 'all'}.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    counts = sorted(args.gpus)
    prepare_checkpoint(args)
    prepare_videos(args)
    heads = ("sample s", "frames/s", "per GPU", "efficiency", "MFU", "peak GiB", "reserved", "loss difference")
    print("GPUs " + " ".join(f"{head:>10}" for head in heads))
    runs, reference = [], None
    for count in reversed(counts):
        same_batch = train(args, count, args.accumulation * counts[-1] // count)
        reference = reference or same_batch
        runs.append({**train(args, count, args.accumulation), "loss_difference": difference(same_batch["losses"], reference["losses"])})
    base = runs[-1]["frames_per_s"] / counts[0]
    for run in reversed(runs):
        per_gpu = run["frames_per_s"] / run["gpus"]
        run["efficiency"] = per_gpu / base
        nan = float("nan")
        numbers = (run["sample_s"], run["frames_per_s"], per_gpu, run["efficiency"], run.get("mfu", nan), run.get("memory_gib", nan),
                   run.get("memory_reserved_gib", nan))  # fmt: skip
        print(f"{run['gpus']:4d} " + " ".join(f"{x:10.3f}" for x in numbers) + f" {run['loss_difference']:10.2e}", flush=True)
    killed = kill_one_rank(args, counts[-1]) if args.kill else None
    if killed:
        print(f"one rank killed: the job ended after {killed['seconds_to_end']} s with exit code {killed['exit_code']}")
    resumed = resume(args, counts[-1]) if args.resume and counts[-1] > 1 else []
    for run in resumed[1:]:
        print(f"on {run['gpus']} GPUs, {run['said']}: loss difference {run['loss_difference']:.2e}")
    device = "cpu" if args.cpu else torch.cuda.get_device_name()
    for run in runs:
        del run["flags"]
    print(json.dumps({"benchmark": "train_scaling", "size": args.size, "device": device, "torch": torch.__version__, "steps": args.steps,
                      "deepspeed": Path(args.deepspeed).stem,
                      "frames": args.frames, "accumulation": args.accumulation,
                      "more_flags": args.flags, "runs": runs, "killed": killed, "resumed": resumed}))  # fmt: skip


if __name__ == "__main__":
    run_command(main)
