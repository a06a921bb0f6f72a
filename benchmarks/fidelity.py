"""What smaller weights cost: --weights bf16, 8bit and 4bit against float32, in scores, speed and memory.

    python benchmarks/fidelity.py                                    # demo model, 40 generated videos that it was not trained on: with tau
    python benchmarks/fidelity.py --size 7b --frames 600             # random weights on one GPU with 40 GB (float32 is the yardstick)
    python benchmarks/fidelity.py --size tiny --frames 40            # the same on a machine without a GPU

As `aha highlights` scores: dynamic sink of 2048 tokens, 16 frames in one call. `load_peak_gib` and `gpu_peak_gib` are the GPU's peaks while
the weights were made smaller and while all frames were scored; `weights_mb` is what all weights take. 8bit needs torchao and is left out
where it is not installed. Prints a table and one JSON line last.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from score_offline import score
from streaming_common import arguments, environment, gpu_gib, pictures, random_model, settle, timed, tokenizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aha.api import CACHE
from aha.conversation import Query
from aha.core.extras import installed
from aha.core.heads import SCORES
from aha.core.prediction import write_predictions
from aha.demo.dataset import plan_dataset, write_tables, write_video
from aha.eval import tvsum
from aha.metrics.bootstrap import confidence_intervals
from aha.metrics.rank import spearman
from aha.models.quantized import quantize_weights
from aha.scoring.config import ScoreConfig
from aha.scoring.model_choice import WEIGHTS, ModelChoice
from aha.scoring.offline import Scorer
from aha.streaming import Session
from aha.streaming.decoder import Decoder

CHUNK = 16  # frames in one call
SEED = 7  # of the demo's videos; its model was trained on seed 0
KINDS = ("float32", *WEIGHTS)


def weights_mb(model: torch.nn.Module) -> float:
    """What parameters and buffers take, those inside torchao's tensors too."""

    def size(tensor: torch.Tensor) -> int:
        if is_traceable_wrapper_subclass(tensor):
            return sum(size(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    return round(sum(size(tensor) for tensor in [*model.parameters(), *model.buffers()]) / 1e6, 2)


def differences(scores_SF: np.ndarray, exact_SF: np.ndarray) -> dict[str, float]:
    """Of the scores [S, F] over all frames; the rank correlation is the smallest of the heads'."""
    result = {}
    for name, ours, exact in zip(SCORES, scores_SF, exact_SF):
        result[f"max_{name}"], result[f"mean_{name}"] = float(np.abs(ours - exact).max()), float(np.abs(ours - exact).mean())
    result["rank_correlation"] = min(float(spearman(ours, exact)) for ours, exact in zip(scores_SF, exact_SF))
    return {name: float(f"{value:.4g}") for name, value in result.items()}


# ---- the demo model on videos of its world ----


def demo_row(kind: str, videos: list[Path], official: Path, folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """(row, scores [S, F] over all videos, Kendall's tau of each video [V])."""
    choice = ModelChoice(device="cpu", **({"dtype": kind} if kind == "float32" else {"weights": kind}))
    scorer = Scorer(*choice.load(), ScoreConfig(frame_fps=1, chunk_frames=CHUNK, cache=CACHE))
    titles = {plan.video_id: plan.title for plan in plan_dataset(SEED)}
    scorer.score(videos[0], [Query(titles[videos[0].stem])])
    seconds, found = timed(torch.device("cpu"), lambda: [scorer.score(video, [Query(titles[video.stem])]) for video in videos])
    scores_SF = np.concatenate([[prediction.head(name) for name in SCORES] for prediction in found], axis=1)
    write_predictions(folder / f"{kind}.json", found)
    metrics = tvsum.evaluate(folder / f"{kind}.json", annotations=official, protocols=["corr_full"])
    tau = metrics["protocols"]["corr_full"]["kendall"]["per_video"]
    row = {"weights": kind, "frames_per_second": round(scores_SF.shape[1] / seconds, 1), "weights_mb": weights_mb(scorer.model)}
    return row, scores_SF, np.array([tau[video.stem] for video in videos])


def demo(folder: Path, count: int) -> list[dict[str, Any]]:
    official = folder / f"tvsum-seed{SEED}-{count}"
    plans = plan_dataset(SEED)
    plans = [plans[number * len(plans) // count] for number in range(count)]  # of every kind
    videos = [official / "video" / f"{plan.video_id}.mp4" for plan in plans]
    for plan, video in zip(plans, videos):
        if not video.is_file():
            write_video(plan, video)
    write_tables(plans, official / "data", SEED)
    rows: list[dict[str, Any]] = []
    for kind in kinds():
        row, scores_SF, tau_V = demo_row(kind, videos, official, folder)
        if not rows:
            exact_SF, exact_V = scores_SF, tau_V
        else:
            row |= differences(scores_SF, exact_SF)
            change_V = tau_V - exact_V
            row["tau_change"] = round(float(change_V.mean()), 5)
            row["tau_change_interval"] = [round(float(end), 5) for end in confidence_intervals(change_V[:, None])[0]]
        row["tau"] = round(float(tau_V.mean()), 4)
        rows.append(row)
        print(row, flush=True)
    return rows


# ---- random weights of a published size ----


def random_weights(args: argparse.Namespace) -> list[dict[str, Any]]:
    device, _ = settle(args)
    cuda = device.type == "cuda"
    host = random_model(args.size, device, torch.bfloat16).cpu()  # 8 and 4 bits compute in it
    frames, words = pictures(args.frames), tokenizer()
    rows: list[dict[str, Any]] = []
    for kind in kinds():
        gc.collect()  # the model of the row before holds itself in a circle
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        model = copy.deepcopy(host)
        if WEIGHTS.get(kind) is None:
            model = model.float() if kind == "float32" else model
            load, model = timed(device, model.to, device)
        else:
            load, model = timed(device, quantize_weights, model, WEIGHTS[kind], device)
        row: dict[str, Any] = {"weights": kind, "load_s": round(load, 1), "load_peak_gib": gpu_gib(device), "weights_mb": weights_mb(model)}
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        decoder = Decoder(model, compiled=args.compile)
        with torch.inference_mode():
            warm_up, _ = timed(device, score, Session(model, tokenizer=words, decoder=decoder, cache=CACHE), frames[: 4 * CHUNK + 3], CHUNK)
            seconds, found = timed(device, score, Session(model, tokenizer=words, decoder=decoder, cache=CACHE), frames, CHUNK)
        row |= {"warm_up_s": round(warm_up, 1), "frames_per_second": round(len(frames) / seconds, 2), "gpu_peak_gib": gpu_gib(device)}
        scores_SF = torch.stack(list(found)).double().numpy()
        if not rows:
            exact_SF = scores_SF
        else:
            row |= differences(scores_SF, exact_SF)
        rows.append(row)
        print(row, flush=True)
        del model, decoder
    return rows


def kinds() -> list[str]:
    return [kind for kind in KINDS if kind != "8bit" or installed("torchao")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.set_defaults(size="demo")
    next(action for action in parser._actions if action.dest == "size").choices = ("demo", "7b", "0.5b", "tiny")
    parser.add_argument("--frames", type=int, default=600, help="of random weights (default %(default)s)")
    parser.add_argument("--videos", type=int, default=40, help="of the demo, 1 to 40 (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="as aha score --compile and aha watch on a GPU do")
    parser.add_argument("--folder", type=Path, help="where the demo's videos are kept (default: drawn again each time)")
    args = parser.parse_args()
    args.no_compile = not args.compile
    if args.size == "demo":
        with tempfile.TemporaryDirectory() as scratch:
            rows = demo(args.folder or Path(scratch), args.videos)
    else:
        rows = random_weights(args)
    print(table(rows))
    device, _ = settle(args)
    print(json.dumps({"benchmark": "fidelity", **environment(args, device), "frames": args.frames, "rows": rows}))


def table(rows: list[dict[str, Any]]) -> str:
    names = ("weights", "max_relevance_score", "mean_relevance_score", "rank_correlation", "tau_change", "frames_per_second", "weights_mb",
             "load_peak_gib", "gpu_peak_gib")  # fmt: skip
    shown = [name for name in names if any(row.get(name) is not None for row in rows)]
    return "\n".join("  ".join(f"{row.get(name, '-')!s:>{len(name)}}" for name in shown) for row in [dict(zip(shown, shown)), *rows])


if __name__ == "__main__":
    main()
