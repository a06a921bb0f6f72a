"""How training scales over the GPUs of a node, through scripts/train_on_tvsum.sh itself: random weights, generated TVSum-format videos.

    python benchmarks/train_scaling.py --size 7b --gpus 1 2 4 --accumulation 8 --steps 6 --together --folder DIR   # a 4-GPU node
    python benchmarks/train_scaling.py --size 7b --gpus 1 --frames 120 --accumulation 8 --steps 6 --folder DIR     # seconds a sample
    python benchmarks/train_scaling.py --size 7b --gpus 4 --accumulation 2 --steps 8 --resume --kill --folder DIR  # going on
    python benchmarks/train_scaling.py --size tiny --gpus 1 2 --steps 4 --folder DIR --cpu    # dry run, processes for GPUs

Each count trains once, with the global batch of the largest count (--accumulation samples a GPU there, more with fewer GPUs). That gives
the loss curve, which must be the same (LoRA dropout is off: its masks differ between ranks), and the scaling efficiency: frames per second
and GPU against those of one GPU (of the smallest count, where one was not measured in --folder). "uneven" is by how much the GPU with most
work had more than the mean, "but that" the efficiency that would be left with even work. --together runs counts whose GPUs fit beside each
other into the largest count at the same time; they share the host then. --nodes 2 spreads each count over two torchruns on 127.0.0.1.

Figures are of the later steps, and of those in which no GPU meets a batch of a new length, where there are any: cuDNN gets ready for one in
a quarter of a second, and with few samples a GPU they come late. "new" is how many the measured steps have all the same (0 is wanted).

--resume A-B: a run on A GPUs is saved, one on B goes on from there with the same global batch; by default N-N, N-N/2 and N/2-N for the
largest count N. The largest count's run is saved after a third of its steps (8 GB for 7b), and its losses are those that the others are
compared with; N/2-N goes on from what N-N/2 saved two thirds through. --kill ends one rank of the first run that goes on with SIGKILL, in
its last step but one (without --resume a run of its own), and measures how long the job takes to end. With --together the runs that go on
share the GPUs as well, which must have the memory for it. Each run's result is printed as soon as it has ended.

The checkpoint (16 GB for 7b) and the videos are made once and kept in --folder; finished runs are not repeated, so an interrupted command
is given again. Prints a table and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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


def batch_of(args: argparse.Namespace) -> int:
    """Samples of an optimizer step."""
    return args.accumulation * max(args.gpus)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Run:
    """One training of `count` GPUs with the global batch of all. `save_steps`: 0 saves nothing; `start`: a checkpoint to go on from."""

    args: argparse.Namespace
    count: int
    name: str
    save_steps: int = 0
    start: Path | None = None
    processes: list[subprocess.Popen] = field(default_factory=list)  # a torchrun for each node
    begin: float = 0.0

    @property
    def output(self) -> Path:
        return self.args.folder / f"run-{self.name}-{Path(self.args.deepspeed).stem}{self.args.label}"

    @property
    def log(self) -> Path:
        return self.args.folder / f"{self.output.name}.log"

    @property
    def accumulation(self) -> int:
        return batch_of(self.args) // self.count

    def flags(self) -> list[str]:
        args, checkpoint = self.args, self.args.folder / "checkpoint"
        flags = [
            "bash", str(ROOT / "scripts/train_on_tvsum.sh"), *(["--use_cpu", "True", "--bf16", "False"] if args.cpu else []),
            "--llm_pretrained", str(checkpoint / "llava-base"), "--lora_pretrained",
            str(checkpoint / "mmduet-adapter"), "--dataset_config", str(args.mixture), "--output_dir", str(self.output),
            "--deepspeed", args.deepspeed, "--max_steps", str(args.steps), "--num_train_epochs", "1000", "--gradient_accumulation_steps",
            str(self.accumulation), "--lora_dropout", "0", "--report_to", "none", "--disable_tqdm", "True",
            "--resume_from_checkpoint", str(self.start or "none"), *args.flags,
        ]  # fmt: skip
        return flags + (["--save_steps", str(self.save_steps), "--save_total_limit", "9"] if self.save_steps else ["--save_strategy", "no"])

    def launch(self, first_gpu: int = 0) -> None:
        """Start it on the GPUs from `first_gpu` on (of those that CUDA_VISIBLE_DEVICES leaves)."""
        shutil.rmtree(self.output, ignore_errors=True)
        nodes, visible = self.args.nodes, os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(first_gpu + self.count)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1" if self.args.cpu else "4"}
        if nodes > 1:
            environment |= {"NNODES": str(nodes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.begin, each = time.perf_counter(), self.count // nodes
        for node in range(nodes):
            environment |= {"NUM_GPUS": str(each), "NODE_RANK": str(node)}
            if not self.args.cpu:
                begin = first_gpu + node * each
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[begin : begin + each])
            with (self.log if not node else self.log.with_suffix(f".{node}.log")).open("w") as file:
                self.processes.append(
                    subprocess.Popen(self.flags(), env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
                )

    def wait(self) -> int:
        """The first exit code that is not 0."""
        return next((code for process in self.processes if (code := process.wait())), 0)

    def finish(self) -> None:
        if self.wait():
            last = self.log.read_text(errors="replace").strip().splitlines()[-1]
            raise UserError(f"the run on {self.count} GPUs failed: {last} (all of it: {self.log})")

    def kill_a_rank(self) -> tuple[float, int]:
        """Seconds from SIGKILL of the last rank until the whole job has ended, and its exit code."""
        ranks = [child for child in psutil.Process(self.processes[-1].pid).children() if "aha.train" in child.cmdline()]
        begin = time.perf_counter()
        ranks[-1].kill()
        code = self.wait()
        return round(time.perf_counter() - begin, 1), code

    def wait_for_steps(self, count: int) -> None:
        while len(self.losses()) < count:
            if self.processes[0].poll() is not None:
                raise UserError(f"the run to be killed ended by itself; see {self.log}.")
            time.sleep(0.02)

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in lines_of(self.output / "loss_history.jsonl")}

    def done(self) -> dict | None:
        """The result of an earlier run with the same flags."""
        path = self.output / "benchmark.json"
        found = read_json(path, "result") if path.is_file() else {}
        return found if found.get("flags") == self.flags() else None

    def keep(self, result: dict) -> dict:
        result = {"gpus": self.count, "accumulation": self.accumulation, "flags": self.flags(), "losses": self.losses(), **result}
        write_json(self.output / "benchmark.json", result)
        return json.loads(json.dumps(result))


def lines_of(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def difference(losses: dict[str, float], reference: dict[str, float]) -> float:
    """The largest relative difference of a step that both have."""
    return max((abs(losses[step] - reference[step]) / abs(reference[step]) for step in losses.keys() & reference.keys()), default=0.0)


def steady_steps(steps: list[dict]) -> list[dict]:
    """The later ones, of them those without a batch of a new length, if there are any."""
    later = steps[min(4, len(steps) // 2) :]
    return [step for step in later if not step["new_shapes"]] or later


def measured(run: Run) -> dict:
    """Median step time and throughput of a finished run in its steady steps, and its wall time."""
    steps = [line for line in lines_of(run.output / "train.log") if "step_time_s" in line]
    steady = steady_steps(steps)
    seconds = sum(s["step_time_s"] for s in steady)
    step_s = statistics.median(s["step_time_s"] for s in steady)
    return {
        "wall_s": round(time.perf_counter() - run.begin, 1), "step_time_s": step_s, "sample_s": step_s / run.accumulation,
        "data_wait_s": max(s["data_wait_s"] for s in steady), "first_step_s": steps[0]["step_time_s"],
        **{name: sum(s[name] * s["step_time_s"] for s in steady) / seconds for name in ("frames_per_s", "tokens_per_s", "imbalance")},
        "measured_steps": [s["step"] for s in steady], "new_shapes": sum(s["new_shapes"] for s in steady),
        "all_step_seconds": [s["step_time_s"] for s in steps], "all_new_shapes": [s["new_shapes"] for s in steps],
        **{name: max(s[name] for s in steps) for name in ("memory_gib", "memory_reserved_gib", "mfu", "hfu") if name in steps[-1]},
        "step_seconds": lines_of(run.output / "train.log")[-1].get("step_seconds"),
        "chosen": read_json(run.output / "settings.json", "settings")["chosen"],
    }  # fmt: skip


def side_by_side(counts: list[int], together: bool) -> list[list[int]]:
    """Counts that run at the same time, the largest first: those that fit beside each other into the largest one's GPUs."""
    groups: list[list[int]] = []
    for count in sorted(counts, reverse=True):
        room = next((group for group in groups if together and sum(group) + count <= max(counts)), None)
        if room is None:
            groups.append(room := [])
        room.append(count)
    return groups


def train_all(args: argparse.Namespace) -> dict[int, dict]:
    """One run for each count -> {count: result}. With --resume the largest one is saved after a third and two thirds of its steps."""
    results: dict[int, dict] = {}
    for group in side_by_side(args.gpus, args.together):
        runs = [Run(args, n, f"{n}x{batch_of(args) // n}", args.save_steps if n == max(args.gpus) and args.resume else 0) for n in group]
        new = [run for run in runs if run.done() is None]
        for run in new:
            run.launch(sum(earlier.count for earlier in runs[: runs.index(run)]))
        for run in new:
            run.finish()
            run.keep(measured(run))
            remove_checkpoints(run, but=args.save_steps)
        for run in runs:
            results[run.count] = result = run.done() or {}
            apart = difference(result["losses"], results[max(args.gpus)]["losses"])
            say(f"{run.count} GPUs: {result['sample_s']:.3f} s a sample, loss difference {apart:.2e}", result)
    return results


# ---- going on, and ending badly ----


def pairs_of(words: list[str], largest: int) -> list[tuple[int, int]]:
    """ "4-2" -> (4, 2); nothing given: N-N, N-N/2, N/2-N. Raises UserError."""
    half = largest // 2
    pairs = [(int(m[1]), int(m[2])) if (m := re.fullmatch(r"(\d+)-(\d+)", word)) else (0, 0) for word in words]
    known = [(largest, largest), (largest, half), (half, largest)]
    if wrong := [word for word, pair in zip(words, pairs) if pair not in known]:
        raise UserError(f"--resume {wrong[0]}: with --gpus up to {largest} it is one of {', '.join(f'{a}-{b}' for a, b in known)}.")
    return pairs or known


def save_steps(steps: int) -> int:
    """A third of the steps, so that a checkpoint at twice that leaves steps to go on with; as few checkpoints as that allows."""
    few = -(-(steps + 1) // 3)
    return few if 2 * few < steps else steps // 3


def remove_checkpoints(run: Run, but: int) -> None:
    for folder in run.output.glob("checkpoint-*"):
        if folder.name != f"checkpoint-{but}":
            shutil.rmtree(folder)


def steps_before_kill(to_go: int) -> int:
    """The kill comes in the last step but one, or later where there would not be two steps to compare."""
    return max(to_go - 2, min(2, to_go - 1), 1)


def go_on(run: Run, before: int, kill: bool, reference: dict) -> dict:
    """The result of `run`, which goes on from a checkpoint of `before` GPUs; said as soon as it is there. kill: end a rank."""
    args = run.args
    assert run.start is not None
    result = run.done()
    if result is None:
        run.launch()
        ended: dict = {}
        if kill:
            run.wait_for_steps(steps_before_kill(args.steps - int(run.start.name.rpartition("-")[2])))
            seconds, code = run.kill_a_rank()
            ended = {"killed": {"seconds_to_end": seconds, "exit_code": code, "last_lines": run.log.read_text().splitlines()[-3:]}}
        else:
            run.finish()
        said = next((line for line in run.log.read_text().splitlines() if line.startswith("resuming from")), None)
        result = run.keep({"wall_s": round(time.perf_counter() - run.begin, 1), "said": said, "from": before, **ended})
        remove_checkpoints(run, but=2 * args.save_steps if run.save_steps else 0)
    result["loss_difference"] = difference(result["losses"], reference["losses"])
    steps = len(result["losses"].keys() & reference["losses"].keys())
    say(f"from {before} to {run.count} GPUs: {steps} steps, loss difference {result['loss_difference']:.2e} ({result['said']})", result)
    return result


def say(what: str, result: dict) -> None:
    """One line for a run that has ended: what is measured must not be lost should the command be stopped."""
    ended = f"; one rank killed: the job ended after {result['killed']['seconds_to_end']} s" if result.get("killed") else ""
    losses = " ".join(f"{step}:{loss:.5f}" for step, loss in result["losses"].items())
    print(f"{what}{ended}; losses {losses}", flush=True)


def resume(args: argparse.Namespace, reference: dict) -> tuple[list[dict], dict | None]:
    """Results of runs that go on from a checkpoint, and of a rank's end (--kill: the first of them). With --together they share the GPUs;
    the one that needs a checkpoint of another starts once that is written."""
    largest, half, third = max(args.gpus), max(args.gpus) // 2, args.save_steps
    saved = Run(args, largest, f"{largest}x{args.accumulation}", third).output / f"checkpoint-{third}"
    halved = Run(args, half, f"going-{largest}-{half}", third, saved)
    checkpoint = halved.output / f"checkpoint-{2 * third}"
    wanted = list(args.resume)
    if (half, largest) in wanted and (largest, half) not in wanted and halved.done() is None:
        wanted.insert(0, (largest, half))
    wanted.sort(key=lambda pair: pair[0] < pair[1])  # stable: what needs another's checkpoint comes last
    needed = (half, largest) in wanted
    killed = next(pair for pair in wanted if not (needed and pair == (largest, half)))
    if halved.done() is None:
        shutil.rmtree(halved.output, ignore_errors=True)  # `checkpoint` is then of this command
    halved_ended = threading.Event()

    def run_pair(pair: tuple[int, int]) -> dict:
        before, after = pair
        run = halved if pair == (largest, half) else Run(args, after, f"going-{before}-{after}", 0, saved)
        if before < after:
            run.start = checkpoint
            while halved.done() is None and not (checkpoint / "complete.json").is_file():
                if halved_ended.is_set():
                    raise UserError(f"the run from {largest} to {half} GPUs wrote no checkpoint to go on from; see {halved.log}.")
                time.sleep(0.1)
        try:
            return go_on(run, before, args.kill and pair == killed, reference)
        except UserError as error:
            print(f"from {before} to {after} GPUs: {error}", flush=True)
            raise
        finally:
            if run is halved:
                halved_ended.set()

    with ThreadPoolExecutor(len(wanted) if args.together else 1) as threads:
        futures = [threads.submit(run_pair, pair) for pair in wanted]
    results = [future.result() for future in futures]  # a run that failed ends the command when the others have been measured
    return results, next((result["killed"] for result in results if result.get("killed")), None)


def kill_one_rank(args: argparse.Namespace) -> dict:
    run = Run(args, max(args.gpus), "killed")
    run.launch()
    run.wait_for_steps(2)
    seconds, code = run.kill_a_rank()
    return {"seconds_to_end": seconds, "exit_code": code, "last_lines": run.log.read_text().splitlines()[-3:]}


def one_gpu(args: argparse.Namespace, results: dict[int, dict]) -> tuple[str, float]:
    """What efficiency is relative to: (its name, frames per second and GPU). One GPU, here or in an earlier run of --folder (with another
    ZeRO stage, say), else the smallest count."""
    smallest = min(results)
    if smallest > 1:
        for path in sorted(args.folder.glob(f"run-1x{batch_of(args)}-*{args.label}/benchmark.json")):
            return path.parent.name, read_json(path, "result")["frames_per_s"]
    return f"{smallest} GPU{'s' if smallest > 1 else ''}", results[smallest]["frames_per_s"] / smallest


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("train_scaling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7b", choices=SIZES, help="model dimensions (default %(default)s)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8], help="counts of GPUs (default %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each run (default %(default)s)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of the videos (default %(default)s: 75 a sample)")
    parser.add_argument("--frames", type=int, help="frames of every sample (default: as long as the videos are)")
    parser.add_argument(
        "--accumulation", type=int, default=1, help="samples a GPU in an optimizer step of the largest count (default %(default)s)"
    )
    parser.add_argument("--deepspeed", default=str(ROOT / "configs/deepspeed/zero1.json"), help="DeepSpeed config (default: ZeRO-1)")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept (20 GB and the saved runs for 7b)")
    parser.add_argument("--together", action="store_true", help="run counts at the same time whose GPUs fit beside each other")
    parser.add_argument("--nodes", type=int, default=1, help="torchruns on 127.0.0.1 that share each count (default %(default)s)")
    parser.add_argument("--kill", action="store_true", help="also kill one rank")
    parser.add_argument(
        "--resume", nargs="*", metavar="A-B", help="also go on with B GPUs from a checkpoint of A (default N-N N-N/2 N/2-N)"
    )
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU in place of GPUs")
    parser.add_argument("--flags", default="", help="more flags for the script, in one string")
    args = parser.parse_args(argv)
    args.flags = shlex.split(args.flags)
    frames = args.frames or f"{args.fps:g}fps"
    args.label = "".join(re.sub(r"[^a-z0-9.]+", "-", text.lower()) for text in [f"-{frames}", *args.flags])
    args.label += "-cpu" * args.cpu + f"-{args.nodes}nodes" * (args.nodes > 1)
    args.folder, args.deepspeed = args.folder.resolve(), str(Path(args.deepspeed).resolve())
    args.mixture = args.folder / f"mixture-{frames}.json"
    args.gpus = sorted(args.gpus)
    args.resume = [] if args.resume is None or args.gpus[-1] < 2 else pairs_of(args.resume, args.gpus[-1])
    args.save_steps = save_steps(args.steps)
    if wrong := [n for n in args.gpus if batch_of(args) % n or n % args.nodes]:
        raise UserError(f"{wrong[0]} GPUs cannot share {batch_of(args)} samples on {args.nodes} nodes evenly; choose other --gpus.")
    if args.resume and args.steps < 3:
        raise UserError(f"--resume needs at least 3 --steps, not {args.steps}: it saves after a third and two thirds of them.")
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare_checkpoint(args)
    prepare_videos(args)
    results = train_all(args)
    reference = results[args.gpus[-1]]
    base, per_gpu_of_base = one_gpu(args, results)
    print(f"one run for each count, {batch_of(args)} samples a step; efficiency against {base}")
    heads = ("sample s", "frames/s", "per GPU", "efficiency", "uneven", "but that", "new", "MFU", "peak GiB", "reserved", "loss difference")
    print("GPUs " + " ".join(f"{head:>10}" for head in heads))
    for count, run in sorted(results.items()):
        per_gpu = run["frames_per_s"] / count
        run["efficiency"] = per_gpu / per_gpu_of_base
        run["loss_difference"] = difference(run["losses"], reference["losses"])
        nan = float("nan")
        numbers = (run["sample_s"], run["frames_per_s"], per_gpu, run["efficiency"], run["imbalance"],
                   run["efficiency"] * (1 + run["imbalance"]), run["new_shapes"], run.get("mfu", nan), run.get("memory_gib", nan),
                   run.get("memory_reserved_gib", nan))  # fmt: skip
        print(f"{count:4d} " + " ".join(f"{x:10.3f}" for x in numbers) + f" {run['loss_difference']:10.2e}", flush=True)
    resumed, killed = resume(args, reference) if args.resume else ([], None)
    if args.kill and not args.resume:
        killed = kill_one_rank(args)
    if killed:
        print(f"one rank killed: the job ended after {killed['seconds_to_end']} s with exit code {killed['exit_code']}", flush=True)
    device = "cpu" if args.cpu else torch.cuda.get_device_name()
    for run in [*results.values(), *resumed]:
        del run["flags"]
    print(json.dumps({"benchmark": "train_scaling", "size": args.size, "device": device, "torch": torch.__version__, "steps": args.steps,
                      "deepspeed": Path(args.deepspeed).stem, "nodes": args.nodes, "together": args.together,
                      "frames": args.frames, "accumulation": args.accumulation, "more_flags": args.flags,
                      "runs": list(results.values()), "killed": killed, "resumed": resumed}))  # fmt: skip


if __name__ == "__main__":
    run_command(main)
