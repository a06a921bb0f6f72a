"""Ablations in one command: caches, corruptions, prompts and heads, over vision features that are computed once.

    python -m aha.eval.ablate --dataset tvsum --study cache,corruption,prompt,heads --llm_pretrained BASE --lora_pretrained ADAPTER \\
        --output outputs/ablation

Each row is what `python -m aha.score` with the row's options and the evaluation of the data set give, number for number; the options
stand in ablation.json. The vision tower sees every clean frame once, whatever the number of rows, and of corrupted videos the corrupted
frames only; the command says how often it ran. Interrupted, it goes on where it stopped.

    cache        full, sink, dynamic_sink, sliding, static; --window and --sink_tokens apply to the bounded ones
    corruption   clean, and --corrupt_ratio of the seconds with lower quality, block noise, colour banding, blackout
    prompt       specific, ambiguous, unrelated, none (aha.core.prompts)
    heads        all three, and without each; weights of the Aha paper's zero-shot row unless given

Shapes: F frames of a video, K tokens of a frame (49), H decoder width.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.files import read_json, write_json, write_text
from aha.core.fusion import Fusion
from aha.errors import UserError, run_command
from aha.eval import MODULES, load_task
from aha.results import table
from aha.results.tree import leaf

if TYPE_CHECKING:
    from torch import Tensor

    from aha.scoring.dataset import Item

STUDIES = ("cache", "corruption", "prompt", "heads")
BOUNDED = ("sink", "dynamic_sink", "sliding", "static")
ZERO_SHOT = Fusion(0.7, 1.0, -2.9, 0.3)  # Aha paper, table 11: "zero-shot"; the sign of epsilon rewards uncertainty
CHUNK = 32


@dataclass(frozen=True)
class Variant:
    """One row: options of aha.score, and the weights of the heads."""

    study: str
    name: str
    options: tuple[str, ...] = ()
    weights: Fusion = Fusion()


def variants(args: argparse.Namespace) -> list[Variant]:
    """The rows of the chosen studies, in order."""
    given = [args.alpha, args.beta, args.epsilon, args.uncertainty_threshold]
    weights = (
        Fusion()
        if given == [None] * 4
        else Fusion(*(value if value is not None else default for value, default in zip(given, (0.0, 1.0, 0.0, 0.0))))
    )
    heads = ZERO_SHOT if given == [None] * 4 else weights
    window = [] if args.window is None else ["--window", str(args.window)]
    sinks = [] if args.sink_tokens is None else ["--sink_tokens", str(args.sink_tokens)]
    seed = ["--seed", str(args.seed)]
    rows = {
        "cache": [Variant("cache", "full", (), weights)] + [
            Variant("cache", kind, ("--cache", kind, *window, *(sinks if kind == "sink" else [])), weights) for kind in BOUNDED
        ],
        "corruption": [Variant("corruption", "clean", (), weights)] + [
            Variant("corruption", kind, ("--corrupt", kind, "--corrupt_ratio", str(args.corrupt_ratio), *seed), weights)
            for kind in ("quality", "block_noise", "color_banding", "blackout")
        ],
        "prompt": [Variant("prompt", "specific", (), weights)] + [
            Variant("prompt", style, ("--prompt_style", style, *seed), weights) for style in ("ambiguous", "unrelated", "none")
        ],
        "heads": [
            Variant("heads", "all heads", (), heads),
            Variant("heads", "without informative", (), replace(heads, alpha=0.0)),
            Variant("heads", "without relevance", (), replace(heads, beta=0.0)),
            Variant("heads", "without uncertainty", (), replace(heads, epsilon=0.0)),
        ],
    }  # fmt: skip
    chosen = [variant for study in STUDIES if study in args.study for variant in rows[study]]
    empty = [variant for variant in chosen if variant.weights.alpha == variant.weights.beta == 0]
    if empty:
        raise UserError(f"row '{empty[0].name}' leaves no head but uncertainty (alpha and beta 0); give --alpha and --beta above zero.")
    return chosen


# ---------------------------------------------------------------- vision features


class Vision:
    """Frame tokens of videos, kept on disk; counts what the tower really did."""

    def __init__(self, model: Any, folder: Path, batch_frames: int = CHUNK):
        from aha.data.feature_cache import FeatureCache, tower_key

        digest = hashlib.sha256(tower_key(model).encode())
        for name, weight in model.model.mm_projector.named_parameters():  # the tokens come out of the projector
            digest.update(f"{name}{weight.detach().float().sum().item()!r}{weight.dtype}".encode())
        self.model, self.batch_frames = model, batch_frames
        self.cache = FeatureCache(folder, digest.hexdigest()[:16])
        self.encoded = self.encoded_corrupted = self.reused = 0

    def tokens(self, item: Item, settings: Any, corruptions: Sequence[Any]) -> tuple[dict, dict[Any, Tensor]]:
        """({"times", "frame_indices", "duration", "fps"}, {None: clean tokens [F, K, H], corruption: tokens [F, K, H]})."""
        from aha.data.feature_cache import video_key

        key = video_key(item.path, fps=settings.frame_fps, max_frames=settings.max_num_frames, sampling=settings.sampling) + "-tokens"
        keys = {None: key} | {c: f"{key}-{c.kind}-{c.ratio:g}-{c.seed}" for c in corruptions}
        facts_path = self.cache.folder / "facts" / f"{key}.json"
        stored = {c: self.cache.get(k) for c, k in keys.items()} if facts_path.exists() else dict.fromkeys(keys)
        absent = [c for c, tensor in stored.items() if tensor is None]
        if absent:
            facts, made = self._encode(item, settings, absent)
            for c, tensor in made.items():
                self.cache.put(keys[c], tensor)
                stored[c] = tensor
            write_json(facts_path, facts)
        else:
            facts = read_json(facts_path, "facts of a video's features")
        clean = stored[None]
        self.reused += 0 if None in absent else len(clean)
        return facts, {c: clean if c is None else self._patched(clean, tensor, bad_frames(c, facts, item)) for c, tensor in stored.items()}

    def _patched(self, clean_FKH: Tensor, bad: Tensor, places: list[int]) -> Tensor:
        whole = clean_FKH.clone()
        whole[places] = bad
        return whole

    def _encode(self, item: Item, settings: Any, wanted: Sequence[Any]) -> tuple[dict, dict[Any, Tensor]]:
        """Read the video once; clean tokens (where wanted) and those of each corruption's bad frames."""
        import numpy as np
        import torch

        from aha.streaming.chunks import in_batches, read_ahead
        from aha.video.reader import iter_frames, probe

        info = probe(item.path)
        spread = settings.frame_fps == 0
        fps = settings.max_num_frames / info.duration if spread else settings.frame_fps
        frames = iter_frames(
            item.path, fps=None if spread else fps, num_frames=settings.max_num_frames if spread else None,
            max_frames=None if spread else settings.max_num_frames, sampling=settings.sampling,
        )  # fmt: skip
        facts: dict[str, Any] = {"times": [], "frame_indices": [], "duration": info.duration, "fps": fps}
        parts: dict[Any, list[Tensor]] = {c: [] for c in wanted}
        name = Path(item.path).stem
        hit = {c: c.bad_seconds(info.duration, name) for c in wanted if c is not None}

        def embed(pictures: list[np.ndarray]) -> Tensor:
            with torch.inference_mode():
                return self.model.visual_embed(torch.from_numpy(np.stack(pictures))).cpu()

        for batch in in_batches(read_ahead(frames, 2 * self.batch_frames), self.batch_frames):
            facts["times"] += [frame.time for frame in batch]
            facts["frame_indices"] += [frame.frame_index for frame in batch]
            for c in wanted:
                if c is None:
                    pictures = [frame.frame_CHW for frame in batch]
                    self.encoded += len(pictures)
                else:
                    pictures = [c.frame(f.frame_CHW, name, f.frame_index) for f in batch if math.floor(f.time + 1e-6) in hit[c]]
                    self.encoded_corrupted += len(pictures)
                if pictures:
                    parts[c].append(embed(pictures))
        if not facts["times"]:
            raise UserError(f"video {item.path} gave no frame; check the file.")
        empty = torch.zeros(0)
        return facts, {c: torch.cat(tensors) if tensors else empty for c, tensors in parts.items()}


def bad_frames(corruption: Any, facts: dict, item: Item) -> list[int]:
    """Places, among the sampled frames, of those in a bad second."""
    hit = corruption.bad_seconds(facts["duration"], Path(item.path).stem)
    return [k for k, time in enumerate(facts["times"]) if math.floor(time + 1e-6) in hit]


# ---------------------------------------------------------------- scoring


def score_tokens(model: Any, tokenizer: Any, facts: dict, tokens_FKH: Tensor, item: Item, settings: Any) -> dict[str, Any]:
    """One element of a prediction file, as aha.score writes it, from stored frame tokens."""
    from aha.conversation import QuerySchedule
    from aha.streaming.chunks import debug_rows
    from aha.streaming.session import Session

    session = Session(model, tokenizer=tokenizer, **(settings.session or {}))
    schedule = QuerySchedule(item.queries, session.state.prompt_order, facts["fps"])
    asked = [schedule.due(time) for time in facts["times"]]
    starts = [k for k in range(len(asked)) if k % settings.chunk_frames == 0 or asked[k]]
    rows: list[dict[str, float]] = []
    for start, end in zip(starts, [*starts[1:], len(asked)]):
        for query in asked[start]:
            session.ask(query.text)
        rows += debug_rows(facts["times"][start:end], session.push_embeds(tokens_FKH[start:end]))
    return {
        "video_uuid": item.video_id, **item.extra, "query": " ".join(query.text for query in item.queries),
        "video_duration": facts["duration"], "frame_fps": facts["fps"], "true_frames_list": facts["frame_indices"],
        "debug_data": rows, "model_response_list": [],
    }  # fmt: skip


def score_all(args: argparse.Namespace, options: Sequence[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], Path], dict[str, int]]:
    """Score the data set under every set of options: ({options: prediction file}, counts of the vision tower)."""
    from tqdm import tqdm

    from aha import score
    from aha.scoring import dataset as score_dataset

    output = Path(args.output)
    common = ["--llm_pretrained", args.llm_pretrained, "--dataset", args.dataset]
    for name in ("lora_pretrained", "data_root", "fold", "limit", "device", "dtype", "frame_fps", "max_num_frames"):
        if getattr(args, name) is not None:
            common += [f"--{name}", str(getattr(args, name))]
    runs = []
    for chosen in options:
        run = score.parse([*common, *chosen, "--output", str(output / "predictions" / f"{file_name(chosen)}.json")])
        items, missing = score_dataset.list_items(run)
        runs.append((run, items, missing, score_dataset.parts_folder(run, items), score.score_settings(run)))
    model, tokenizer = score.load_model(runs[0][0])
    trained_on = score_dataset.trained_on_ids(runs[0][0])
    vision = Vision(model, Path(args.features) if args.features else output / "features")
    corruptions = [settings.corruption for *_, settings in runs if settings.corruption is not None]
    done = [score_dataset.read_parts(folder) for *_, folder, _ in runs]
    order = {item.key: item for item in runs[0][1]}
    frames_scored = 0
    score_dataset.warn_trained_on(list(order.values()), trained_on)
    for key in tqdm(order, desc=f"{len(runs)} settings", unit="video"):
        todo = [i for i in range(len(runs)) if key not in done[i]]
        if not todo:
            continue
        try:
            facts, tokens = vision.tokens(order[key], runs[0][4], corruptions)
            error = None
        except UserError as failure:
            error = str(failure)
        for i in todo:
            frames_scored += len(facts["times"]) if error is None else 0
            run, items, _, folder, settings = runs[i]
            item = next(item for item in items if item.key == key)
            if error is None:
                entry = score_tokens(model, tokenizer, facts, tokens[settings.corruption], item, settings)
                record = {"key": key, "entry": entry | ({"trained_on": True} if item.video_id in trained_on else {})}
            else:
                record = {"key": key, "error": error}
            with score_dataset.part_writer(folder, 0, 1) as write:
                write(record)
    files = {}
    for chosen, (run, items, missing, folder, _) in zip(options, runs):
        score_dataset.merge(run, items, score_dataset.read_parts(folder), missing)
        files[chosen] = Path(run.output)
    counts = {
        "videos": len(order),
        "frames_encoded": vision.encoded,
        "corrupted_frames_encoded": vision.encoded_corrupted,
        "frames_reused": vision.reused,
        "frames_scored": frames_scored,
    }
    return files, counts


def has_uncertainty(predictions: Path) -> bool:
    """Whether a prediction file holds uncertainty scores."""
    first = read_json(predictions, "prediction file")[0]
    return "uncertainty_score" in first["debug_data"][0]


def file_name(options: Sequence[str]) -> str:
    """A file name that says what was changed: "cache-sink-window-2048"; "default" for nothing."""
    return "-".join(option.lstrip("-") for option in options) or "default"


# ---------------------------------------------------------------- evaluation


def columns(dataset: str, predictions: Path, root: str | None, fusion: Fusion) -> dict[str, float | None]:
    """The numbers of one row."""
    task = load_task(dataset)
    wanted = list(dict.fromkeys(column.protocol for column in task.ablation))
    runs = {"random_runs": 1} if task.random_runs else {}
    found = task.evaluate(predictions, annotations=root, protocols=wanted, fusion=fusion, **runs)["protocols"]
    return {column.label: leaf(found, *column.place)["mean"] for column in task.ablation}


DATASETS = tuple(name for name in MODULES if load_task(name).ablation)


def render(rows: list[dict[str, Any]], counts: dict[str, int]) -> str:
    """The one table, and what the vision tower did."""
    names = list(rows[0]["metrics"])
    lines = []
    for i, row in enumerate(rows):
        if i == 0 or row["study"] != rows[i - 1]["study"]:
            lines.append((f"{row['study']}:", [""] * len(names)))
        lines.append((f"  {row['name']}", [table.shown(row["metrics"][name]) for name in names]))
    vision = (
        f"vision tower: {counts['frames_encoded']} clean and {counts['corrupted_frames_encoded']} corrupted frames encoded, "
        f"{counts['frames_reused']} frames taken from disk, where scoring each setting anew encodes {counts['frames_scored']}; "
        f"{len(rows)} rows over {counts['videos']} videos"
    )
    return table.block("ablations", names, lines) + "\n\n" + vision


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    lines = ["| study | row | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 2)]
    lines += [f"| {r['study']} | {r['name']} | " + " | ".join(table.shown(r["metrics"][name]) for name in names) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def study_list(text: str) -> list[str]:
    """ "cache,heads" -> ["cache", "heads"]."""
    studies = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [study for study in studies if study not in STUDIES]
    if unknown or not studies:
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(STUDIES)}, separated by commas")
    return studies


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.eval.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="tvsum", help="benchmark (default %(default)s)")
    parser.add_argument("--study", type=study_list, default=list(STUDIES), metavar="A,B", help=f"of {','.join(STUDIES)} (default: all)")
    parser.add_argument("--llm_pretrained", required=True, metavar="DIR|ID", help="base checkpoint, or a whole Aha model")
    parser.add_argument("--lora_pretrained", metavar="DIR|ID", help="adapter on the base")
    parser.add_argument("--data_root", metavar="DIR", help="folder of the data set (default datasets/NAME)")
    parser.add_argument("--fold", type=int, help="tvsum: only the held-out videos of this fold, 0 to 4")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N videos (or questions)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--frame_fps", type=float, help="frames a second (default 1)")
    parser.add_argument("--max_num_frames", type=int, metavar="N", help="stop after N frames of each video")
    parser.add_argument("--window", type=int, metavar="N", help="tokens kept by the bounded caches (default 2048)")
    parser.add_argument("--sink_tokens", type=int, metavar="N", help="sink tokens of the sink cache (default 32)")
    parser.add_argument("--corrupt_ratio", type=float, default=0.2, metavar="X", help="share of a video's seconds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of corruptions and unrelated prompts (default %(default)s)")
    for name, what in (("alpha", "informative"), ("beta", "relevance"), ("epsilon", "uncertainty")):
        parser.add_argument(f"--{name}", type=float, help=f"weight of the {what} head, in all rows (default: see the studies)")
    parser.add_argument("--uncertainty_threshold", type=float, help="variance below which uncertainty costs nothing")
    parser.add_argument("--features", metavar="DIR", help="where frame tokens are kept (default OUTPUT/features)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for ablation.json, ablation.md and the prediction files")
    args = parser.parse_args(argv)
    chosen = variants(args)
    files, counts = score_all(args, list(dict.fromkeys(variant.options for variant in chosen)))
    if not has_uncertainty(next(iter(files.values()))):
        print("the model has no uncertainty head (an MMDuet adapter): epsilon is 0 in all rows")
        chosen = [replace(v, weights=replace(v.weights, epsilon=0.0)) for v in chosen if v.name != "without uncertainty"]
    rows = []
    for variant in chosen:
        numbers = columns(args.dataset, files[variant.options], args.data_root, variant.weights)
        row = {"study": variant.study, "name": variant.name, "score_options": list(variant.options)}
        rows.append(row | {"weights": asdict(variant.weights), "metrics": numbers})
    print("\n" + render(rows, counts))
    write_json(Path(args.output) / "ablation.json", {"rows": rows, "vision": counts, "settings": vars(args)})
    write_text(Path(args.output) / "ablation.md", markdown(rows))
    print(f"written: {Path(args.output) / 'ablation.json'}, ablation.md")


if __name__ == "__main__":
    run_command(main)
