"""Baselines that keep everybody honest: a prediction file like any other, for every benchmark. `aha baseline`:

    aha baseline centre --dataset tvsum
    aha baseline siglip --dataset tvsum --model google/siglip-so400m-patch14-384
    aha baseline vlm --dataset ovo_bench --endpoint http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct --frames 8
    aha baseline titles_swapped --dataset tvsum --llm_pretrained BASE --lora_pretrained ADAPTER      # and the other flags of aha score
    aha eval tvsum --predictions ours.json --baselines                                               # the rows beside ours

Files go to outputs/baselines/DATASET/NAME.json. Scores stand as `relevance_score`:

- random (seeded), uniform (one constant), centre, recency (later is better): look at no frame;
- motion: mean change of the pixels since the frame before; scene_change: share of the colours that changed;
- siglip: probability that picture and question belong together, of any SigLIP on the hub or in a folder;
- vlm: an ordinary model is shown the last --frames frames once a second, by an OpenAI-compatible server (--endpoint) or by transformers;
  replies are cached, a run that was cut off goes on, and what it will cost is shown before it starts (--dry_run: only that);
- titles_swapped: `aha score` with each video asked for the title of another.

On proactive benchmarks a model that gives scores alone speaks by a label-free alarm budget (aha.scoring.speak), which the file says.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llava_next import PUBLISHED
from tqdm import tqdm

from aha.core.files import check_file, write_json
from aha.core.flags import add_flags, check_outputs, from_args
from aha.core.prediction import Prediction, score_rows, write_predictions
from aha.errors import UserError, run_command
from aha.eval import MODULES
from aha.eval.command import BASELINES
from aha.eval.proactive import moments
from aha.scoring.config import Selection, add_score_flags, score_config_of
from aha.scoring.model_choice import ModelChoice, choice_of
from aha.scoring.speak import Moments, speak
from aha.scoring.vlm import VlmSettings, vlm_predictions
from aha.video import iter_frames, probe

if TYPE_CHECKING:
    from aha.scoring.dataset import Item
    from aha.video.reader import Frame

SIDE = 64  # pixels of the pictures that motion and scene_change compare
BINS = 8  # of each colour
NAMES = ("random", "uniform", "centre", "recency", "motion", "scene_change", "siglip", "vlm", "titles_swapped")
LIVE = ("vlm", "titles_swapped")  # that may be scored on a live stream's clock


def grid(item: Item, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """(times [N], frame numbers [N]) of the sampling grid, from the video's length alone."""
    info = probe(item.path)
    times = np.arange(max(int(np.ceil(info.duration * fps - 1e-9)), 1)) / fps
    return times, np.minimum(np.ceil(times * info.fps - 1e-6), info.frame_count - 1).astype(int)


def blind_scores(name: str, key: str, times: np.ndarray, seed: int) -> np.ndarray:
    """Scores [N] in 0..1 of the baselines that look at no frame."""
    place = (times + times[-1] / max(len(times) - 1, 1) / 2) / (times[-1] + 1e-9 + times[-1] / max(len(times) - 1, 1))
    if name == "random":
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little")).random(len(times))
    return {"uniform": np.full(len(times), 0.5), "centre": 1 - np.abs(2 * place - 1), "recency": place}[name]


def changes(name: str, frames: Iterator[Frame]) -> Iterator[tuple[Frame, float]]:
    """Change since the frame before, 0..1; the first frame has 0."""
    before = None
    for frame in frames:
        if name == "motion":
            now = frame.frame_CHW.astype(np.float32) / 255
            change = 0.0 if before is None else float(np.abs(now - before).mean())
        else:
            pixels = frame.frame_CHW.reshape(3, -1)
            now = np.stack([np.bincount(row // (256 // BINS), minlength=BINS) for row in pixels]) / pixels.shape[1]
            change = 0.0 if before is None else float(np.abs(now - before).sum() / 6)
        before = now
        yield frame, change


class Siglip:
    """Image-text similarity of a SigLIP model: a folder or hub id."""

    def __init__(self, path: str, device: str | None):
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            self.model = AutoModel.from_pretrained(path).eval()
            self.tokenizer, self.pictures = AutoTokenizer.from_pretrained(path), AutoImageProcessor.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"--model {path} cannot be loaded ({reason}); give a folder or hub id of a SigLIP model.") from error
        if self.model.config.model_type not in ("siglip", "siglip2"):
            raise UserError(f"--model {path} is a {type(self.model).__name__}, no SigLIP model.")
        self.torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)

    def scores(self, words: str, frames: Iterator[Frame]) -> Iterator[tuple[Frame, float]]:
        """Probability of each frame, 16 at a time."""
        longest = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer([words], padding="max_length", truncation=True, max_length=longest, return_tensors="pt").to(self.device)
        while batch := list(itertools.islice(frames, 16)):
            pixels = self.pictures([frame.frame_CHW for frame in batch], return_tensors="pt").to(self.device)
            with self.torch.inference_mode():
                logits = self.model(input_ids=text["input_ids"], **pixels).logits_per_image[:, 0]
            yield from zip(batch, self.torch.sigmoid(logits.float()).tolist())


def score_items(name: str, items: Sequence[Item], args: argparse.Namespace) -> tuple[list[Prediction], dict[str, str]]:
    """(predictions, {key: why it has none})."""
    siglip = Siglip(args.model, args.device) if name == "siglip" else None
    found, failed = [], {}
    for item in tqdm(items, desc=name, unit="video", disable=None):
        words = " ".join(query.text for query in item.queries)
        try:
            if siglip or name in ("motion", "scene_change"):
                frames = iter_frames(item.path, fps=args.frame_fps, size=PUBLISHED.side if siglip else SIDE)
                scored = list(siglip.scores(words, frames) if siglip else changes(name, frames))
                times, indices = [frame.time for frame, _ in scored], [frame.frame_index for frame, _ in scored]
                scores = [score for _, score in scored]
            else:
                times_N, frames_N = grid(item, args.frame_fps)
                times, indices = times_N.tolist(), frames_N.tolist()
                scores = blind_scores(name, item.key, times_N, args.seed).tolist()
        except UserError as error:
            failed[item.key] = str(error)
            continue
        found.append(prediction_of(item, args.frame_fps, indices, times, scores))
    return found, failed


def prediction_of(item: Item, fps: float, indices: Sequence[int], times: Sequence[float], scores: Sequence[float]) -> Prediction:
    rows = score_rows(times, None, scores)
    words = " ".join(query.text for query in item.queries)
    return Prediction.of_scores(item.video_id, words, item.duration, fps, indices, rows, **item.extra)


def with_replies(found: list[Prediction], dataset: str, root: Path) -> list[Prediction]:
    """On a proactive benchmark: the same with replies by the label-free alarm budget."""
    asked: dict[str, Moments] = moments(dataset, root)
    streams = {}
    for prediction in found:
        if (one := asked.get(prediction.question_id)) is not None:
            rows = [row for row in prediction.rows() if one.start < row["time"] <= one.end]
            streams[prediction.question_id] = (one, rows), prediction
    spoken = {p.question_id: p for p in speak(streams, "budget")[0]}
    return [Prediction({**p.record, **spoken[p.question_id].record}, p.where) for p in found if p.question_id in spoken]


def swapped(items: Sequence[Item]) -> dict[str, str]:
    """{video: the words of another}: the list of videos, by category, turned by half."""
    videos = {item.video_id: item for item in sorted(items, key=lambda item: (item.category, item.video_id))}
    names = list(videos)
    if len(names) < 2:
        raise UserError("titles_swapped needs at least 2 videos; raise --limit.")
    half = len(names) // 2
    return {a: videos[b].queries[0].text if videos[b].queries else "" for a, b in zip(names, names[half:] + names[:half])}


def score_swapped(items: Sequence[Item], selection: Selection, output: Path, args: argparse.Namespace) -> None:
    choice = choice_of(args)
    from aha.scoring.dataset import score_dataset

    titles = output.with_name("swapped_titles.txt")  # beside the rows, but none itself
    write_json(titles, swapped(items))
    score_dataset(choice, score_config_of(args), replace(selection, query_map=str(titles)), output)


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser("aha baseline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=NAMES)
    add_flags(
        p.add_argument_group("which videos"), Selection, only=("dataset", "data_root", "fold", "split", "limit"), required=("dataset",)
    )
    p.add_argument(
        "--model", metavar="ID", help="siglip, vlm: folder or hub id, or the model's name at the endpoint; titles_swapped: as in aha score"
    )
    p.add_argument("--output", metavar="FILE", help=f"default {BASELINES}/DATASET/NAME.json")
    add_flags(p.add_argument_group("vlm"), VlmSettings)
    model = p.add_argument_group("titles_swapped: the model (--device: of siglip and vlm too)")
    add_flags(model, ModelChoice, only=("llm_pretrained", "lora_pretrained", "dtype", "weights", "device", "attn_implementation"))
    add_score_flags(p)
    args = p.parse_args(argv)
    check_outputs(args, "output")
    config = score_config_of(args)
    if config.frame_fps <= 0:
        raise UserError(f"--frame_fps {config.frame_fps:g}: baselines need frames a second above zero.")
    if args.name in ("siglip", "vlm") and not args.model:
        raise UserError(f"aha baseline {args.name} needs --model.")
    if config.clock == "wall" and args.name not in LIVE:
        raise UserError(f"--clock wall is for {' and '.join(LIVE)}; {args.name} is never busy, and its row needs no clock.")
    if config.measured and args.name == "vlm" and hasattr(args, "endpoint") and getattr(args, "workers", None) != 1:
        raise UserError("--speed machine takes the time of one question alone; give --workers 1.")
    args.config = config
    args.frame_fps, args.seed, args.device = config.frame_fps, config.seed, getattr(args, "device", None)
    run(args, from_args(Selection, args))


def run(args: argparse.Namespace, selection: Selection) -> None:
    output = Path(args.output or BASELINES / selection.benchmark / f"{args.name}.json")
    check_file(output)
    from aha.scoring.dataset import list_items  # torch is imported only now

    items, missing = list_items(selection)
    if args.name == "titles_swapped":
        score_swapped(items, selection, output, args)
        return
    proactive = MODULES[selection.benchmark] == "aha.eval.proactive" and selection.benchmark != "streamingbench_mcq"
    if args.name == "vlm":
        settings = from_args(VlmSettings, args)
        found, failed = vlm_predictions(items, args.model, args.device, args.frame_fps, settings, proactive,
                                        args.config.stream_clock)  # fmt: skip
        if settings.dry_run:
            return
    else:
        found, failed = score_items(args.name, items, args)
        if proactive and found:
            from aha.eval import load_task

            found = with_replies(found, selection.benchmark, Path(selection.data_root or load_task(selection.benchmark).folder))
    failed = missing | failed
    if failed:
        print(f"{len(failed)} left out:", *(f"  {name}: {reason}" for name, reason in failed.items()), sep="\n", file=sys.stderr)
        write_json(output.with_name(output.name + ".skipped.json"), failed)
    if not found:
        raise UserError(f"no video of {selection.benchmark} could be scored; the first reason: {next(iter(failed.values()), 'none')}")
    write_predictions(output, found)
    replies = sum(len(prediction.record["model_response_list"]) for prediction in found)
    print(f"baseline {args.name}: {len(found)} of {len(items)}, {replies} replies -> {output}")


if __name__ == "__main__":
    run_command(main)
