"""The demo from data to table: what `bash scripts/train_on_tvsum.sh --demo` runs once the environment stands.

    python -m aha.demo.run --seed 0

Makes the data set, fine-tunes from the shipped adapter with the trainer and DeepSpeed engine of the full run (2 processes on the CPU),
scores the held-out fold frame by frame and prints the table. Steps whose input is what it was are not repeated: a killed run goes on with
the same command, training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.environment import checkout_file
from aha.core.extras import need
from aha.core.files import atomic_path, read_json, write_json, write_text
from aha.core.flags import finite
from aha.core.folds import folds
from aha.demo.dataset import make_dataset, mixture
from aha.errors import UserError, run_command
from aha.eval.annotations import TVSumVideo, find_tvsum, read_tvsum
from aha.scoring.known_models import DEMO
from aha.scoring.model_choice import DEMO_BASE

BASE, ADAPTER = DEMO_BASE, DEMO / "mmduet-demo"
DEEPSPEED = "configs/deepspeed/zero2.json"
FOLD = 0
HELD_OUT = ("--fold", str(FOLD))
DATA_SEED = 0
EPOCHS, LEARNING_RATE = 4, 5e-4
COLUMNS = (("corr_full", "kendall", "Kendall tau"), ("corr_full", "spearman", "Spearman rho"), ("f1_official60", "f1", "F1 at 15%"))


def training_command(
    data: Path, output: Path, seed: int, epochs: float, extra: list[str], held_out: tuple[str, ...] = HELD_OUT
) -> list[str]:
    """The command of the full run (scripts/train_on_tvsum.sh), on 2 CPU processes, with a learning rate for a model of 0.7 M parameters."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "aha.train",
        "--llm_pretrained", str(BASE), "--lora_pretrained", str(ADAPTER), "--dataset_config", str(data / "demo.json"),
        "--vision_cache", str(data / "vision_cache"), *held_out,
        "--deepspeed", str(checkout_file(DEEPSPEED)),
        "--output_dir", str(output), "--num_train_epochs", str(epochs), "--learning_rate", str(LEARNING_RATE),
        "--gradient_accumulation_steps", "1", "--gradient_checkpointing", "False", "--save_steps", "16", "--report_to", "wandb",
        "--seed", str(seed), *extra,
    ]  # fmt: skip


def prepare(folder: Path) -> Path:
    """The data set and its mixture file under `folder`; returns the data folder. Raises UserError if the shipped weights are not there."""
    checkout_file(DEEPSPEED)  # a missing file is reported now, not after the videos are drawn
    need("deepspeed", "train", "the demo's training")
    for checkpoint in (BASE / "model.safetensors", ADAPTER / "adapter_model.safetensors"):
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint} is missing; restore it from the repository or run bash scripts/make_demo_base.sh.")
    data = folder / "tvsum"
    official = make_dataset(data, DATA_SEED)
    write_json(data / "demo.json", mixture(official, fps=1, max_num_frames=128))
    return data


def content(paths: Sequence[Path]) -> str:
    """A short hash of these files, and of all files below these folders: their places and every byte."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b"absent")
    return digest.hexdigest()[:16]


def run_step(
    name: str, command: list[str], marker: Path, log: Path | None = None, reads: Sequence[Path] = (), makes: Sequence[Path] = ()
) -> float:
    """Run a command unless `marker` says that this very command was complete with the same input, and what it made is still there; returns
    its seconds. reads, makes: files, or folders with all that is below. Raises UserError where it fails."""
    facts = {"command": command, "reads": content(reads)}
    if marker.is_file():
        before = read_json(marker, "step marker")
        if isinstance(before, dict) and {key: before.get(key) for key in facts} == facts and before.get("made") == content(makes):
            print(f"{name}: done before", flush=True)
            return 0.0
        marker.unlink()  # so that a step that is cut off does not count as done
    began = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.setdefault("WANDB_MODE", "offline")
    if log is None:
        code, hint = subprocess.run(command, env=environment, check=False).returncode, "see above"
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        hint = f"see {log}"
    if code:
        raise UserError(f"{name} failed (exit code {code}, {hint}); run the same command again, complete steps are kept.")
    write_json(marker, {**facts, "made": content(makes), "seconds": time.time() - began})
    return time.time() - began


def swapped_titles(videos: dict[str, TVSumVideo], held_out: list[str]) -> dict[str, str]:
    """Each held-out video gets the title of one of another category: the id list turned by half."""
    by_category = sorted(held_out, key=lambda video_id: (videos[video_id].category, video_id))
    half = len(by_category) // 2
    return {a: videos[b].title for a, b in zip(by_category, by_category[half:] + by_category[:half])}


def adapter_files(adapter: Path) -> list[Path]:
    """What scoring reads of an adapter or run folder."""
    return [adapter / name for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "trained_on_videos.json")]


def data_files(data: Path) -> list[Path]:
    """Annotations and videos: what training, scoring and evaluation read of the data set."""
    return sorted([*data.rglob("*.tsv"), *data.rglob("*.mp4")])


def evaluate(name: str, adapter: Path, data: Path, folder: Path, query_map: Path | None) -> dict[str, Any]:
    """Score the held-out fold and evaluate the prediction file; returns the metrics. Files: `name`.json and `name`-metrics.json."""
    predictions, metrics = folder / f"{name}.json", folder / f"{name}-metrics.json"
    score = [
        sys.executable, "-m", "aha.score", "--llm_pretrained", str(BASE), "--lora_pretrained", str(adapter), "--dataset", "tvsum",
        "--data_root", str(data), "--fold", str(FOLD), "--frame_fps", "1", "--device", "cpu", "--output", str(predictions),
        *(["--query_map", str(query_map)] if query_map else []),
    ]  # fmt: skip
    read = [BASE, *adapter_files(adapter), *data_files(data), *([query_map] if query_map else [])]
    run_step(f"scoring ({name})", score, folder / f".{name}-scored.json", folder / f"{name}-score.log", read, [predictions])
    judge = [
        sys.executable, "-m", "aha.eval.tvsum", "--predictions", str(predictions), "--annotations", str(find_tvsum(data)),
        "--fold", str(FOLD), "--protocols", *dict.fromkeys(protocol for protocol, _, _ in COLUMNS), "--output", str(metrics),
    ]  # fmt: skip
    read = [predictions, *data_files(data)]
    run_step(f"evaluation ({name})", judge, folder / f".{name}-evaluated.json", folder / f"{name}-eval.log", read, [metrics])
    return read_json(metrics, "metrics file")


def table_rows(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """(row name, values in the order of COLUMNS) of the final table."""

    def own(name: str) -> list[float]:
        return [metrics[name]["protocols"][protocol][metric]["mean"] for protocol, metric, _ in COLUMNS]

    def baseline(name: str) -> list[float]:
        tree = metrics["trained"]["baselines"][name]
        return [tree[protocol][metric]["mean"] for protocol, metric, _ in COLUMNS]

    return [
        ("this model", own("trained")),
        ("this model, titles swapped", own("swapped")),
        ("before training", own("before")),
        ("random scores", baseline("random")),
        ("one human against the others", baseline("human_vs_each_other_human")),
        ("mean annotation (upper limit)", baseline("mean_annotation_as_predictor")),
    ]


def render(rows: list[tuple[str, list[float]]], videos: int) -> str:
    """The table as Markdown, which reads well on a console too."""
    width = max(len(name) for name, _ in rows)
    lines = [f"{f'{videos} held-out videos':{width}} | " + " | ".join(title for _, _, title in COLUMNS)]
    lines.append("-" * width + " | " + " | ".join("-" * len(title) for _, _, title in COLUMNS))
    for name, values in rows:
        cells = ["undefined" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"{name:{width}} | " + " | ".join(f"{cell:>{len(title)}}" for cell, (_, _, title) in zip(cells, COLUMNS)))
    return "\n".join(f"| {line} |" for line in lines)


def plot_losses(run: Path, path: Path) -> None:
    """The training loss of every step and its relevance part, from the run's loss_history.jsonl."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in (run / "loss_history.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [record["step"] for record in records]
    for key, label in (("loss", "total"), ("relevance", "relevance part")):
        values = [record.get(key, np.nan) for record in records]
        axes.plot(steps, values, label=label)
    axes.set(xlabel="optimizer step", ylabel="training loss", title="Demo: fine-tuning on the training folds")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_timeline(predictions: Path, videos: dict[str, TVSumVideo], path: Path) -> None:
    """Scores of one held-out video over time against the annotators' mean, and their spread (middle half of the annotators)."""
    from matplotlib.figure import Figure

    from aha.results.figures import plain_text

    element = read_json(predictions, "prediction file")[0]
    video = videos[element["video_uuid"]]
    seconds = np.arange(video.n_frames) / video.fps
    annotators = (video.user_scores - 1) / 4
    low, high = np.quantile(annotators, [0.25, 0.75], axis=0)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(seconds, low, high, step="mid", alpha=0.2, label="middle half of 20 annotators")
    axes.plot(seconds, annotators.mean(0), drawstyle="steps-mid", label="mean annotation")
    times, scores = zip(*((frame["time"], frame["relevance_score"]) for frame in element["debug_data"]))
    axes.plot(times, scores, marker=".", label="this model")
    axes.set(xlabel="time (s)", ylabel="importance (0 to 1)", title=f"{element['video_uuid']}: {element['query']}", ylim=(0, 1))
    axes.legend(loc="upper right", fontsize="small")
    plain_text(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def run_demo(output: Path, seed: int, epochs: float, extra: list[str]) -> None:
    """All steps; prints the table and where everything is."""
    began = time.time()
    data = prepare(output)
    prepared = time.time() - began
    run, results = output / f"run-seed{seed}", output / f"run-seed{seed}" / "evaluation"
    read = [BASE, *adapter_files(ADAPTER), data / "demo.json", *data_files(data)]
    command = training_command(data, run, seed, epochs, extra)
    trained = run_step("training", command, run / ".trained.json", None, read, adapter_files(run))
    videos = read_tvsum(data)
    held_out = folds({video_id: video.category for video_id, video in videos.items()})[FOLD]
    swaps = results / "swapped_titles.json"
    write_json(swaps, swapped_titles(videos, held_out))
    jobs = {"trained": (run, None), "swapped": (run, swaps), "before": (ADAPTER, None)}
    with ThreadPoolExecutor(2) as pool:
        pending = {name: pool.submit(evaluate, name, adapter, data, results, titles) for name, (adapter, titles) in jobs.items()}
        metrics = {name: job.result() for name, job in pending.items()}
    table = render(table_rows(metrics), len(held_out))
    write_text(run / "table.md", table + "\n")
    plot_losses(run, run / "loss.png")
    plot_timeline(results / "trained.json", videos, run / "timeline.png")
    print(f"\n{table}\n")
    print(f"run folder: {run}\nloss curve: {run / 'loss.png'}\nscore timeline: {run / 'timeline.png'}")
    print(f"time: {time.time() - began:.0f} s (data {prepared:.0f} s, training {trained:.0f} s)")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.demo.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", default="outputs/demo", help="folder for data and runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training (default %(default)s)")
    parser.add_argument("--epochs", type=finite, default=EPOCHS, help="passes over the training videos (default %(default)s)")
    args, extra = parser.parse_known_args(argv)
    run_demo(Path(args.output), args.seed, args.epochs, extra)


if __name__ == "__main__":
    run_command(main)
