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
    clock        every frame, and live at each of --speeds: what arrives while the model is busy is lost (aha.streaming.stream_clock);
                 give a --frame_fps so high that frames are lost. Made only where --study names it

Shapes: F frames of a video, K tokens of a frame (49), H decoder width.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.environment import held
from aha.core.files import check_output, write_json, write_text
from aha.core.flags import add_flags, from_args
from aha.core.fusion import ZERO_SHOT, Fusion, add_fusion_flags, given_weights
from aha.core.prediction import has_uncertainty
from aha.errors import UserError, run_command
from aha.eval import MODULES, load_task
from aha.results import table
from aha.results.tree import leaf
from aha.scoring.config import ScoreConfig, Selection, add_released_flag, score_config_of
from aha.scoring.model_choice import ModelChoice, choice_of
from aha.streaming.stream_clock import cost_of

if TYPE_CHECKING:
    from aha.data.feature_cache import VideoFeatures
    from aha.scoring.dataset import Item
    from aha.scoring.offline import OpenVideo, Scorer
    from aha.video.corrupt import Corruption

STUDIES = ("cache", "corruption", "prompt", "heads")
CLOCK = "clock"
LOST = "frames lost"  # its column: a share
BOUNDED = ("sink", "dynamic_sink", "sliding", "static")
FLAGS = ("frame_fps", "max_num_frames", "video_backend", "window", "sink_tokens", "corrupt_ratio", "seed")


@dataclass(frozen=True)
class Variant:
    """One row: what it changes of ScoreConfig or Selection, and how the heads are weighted."""

    study: str
    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    fusion: Fusion = Fusion()

    @property
    def options(self) -> list[str]:
        """The changes as options of aha.score."""
        return [word for name, value in self.changes for word in (f"--{name}", str(value))]


def variants(studies: Sequence[str], config: ScoreConfig, given: dict[str, float], speeds: Sequence[str] = ()) -> list[Variant]:
    """The rows of the chosen studies, in order. given: the weights of the heads that the user chose, for all rows."""
    fusion = Fusion(**given)
    heads = fusion if given else ZERO_SHOT
    window = () if config.window is None else (("window", config.window),)
    sinks = () if config.sink_tokens is None else (("sink_tokens", config.sink_tokens),)
    seed = ("seed", config.seed)
    rows = {
        "cache": [("full", ())] + [(kind, (("cache", kind), *window, *(sinks if kind == "sink" else ()))) for kind in BOUNDED],
        "corruption": [("clean", ())] + [
            (kind, (("corrupt", kind), ("corrupt_ratio", config.corrupt_ratio), seed))
            for kind in ("quality", "block_noise", "color_banding", "blackout")
        ],
        "prompt": [("specific", ())] + [(style, (("prompt_style", style), seed)) for style in ("ambiguous", "unrelated", "none")],
        CLOCK: [("every frame", ())] + [(f"live, {speed}", (("clock", "wall"), ("speed", speed))) for speed in speeds],
    }  # fmt: skip
    found = [Variant(study, name, changes, fusion) for study in rows if study in studies for name, changes in rows[study]]
    if "heads" in studies:
        without = {"informative": "alpha", "relevance": "beta", "uncertainty": "epsilon"}
        found.append(Variant("heads", "all heads", (), heads))
        found += [Variant("heads", f"without {head}", (), replace(heads, **{weight: 0.0})) for head, weight in without.items()]
    empty = [variant for variant in found if variant.fusion.alpha == variant.fusion.beta == 0]
    if empty:
        raise UserError(f"row '{empty[0].name}' leaves no head but uncertainty (alpha and beta 0); give --alpha and --beta above zero.")
    return found


# ---------------------------------------------------------------- vision features


class Vision:
    """Vision features of videos, clean and corrupted, kept on disk; counts what the tower really did."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.encoded = self.encoded_corrupted = self.reused = 0

    def videos(self, item: Item, corruptions: Sequence[Corruption]) -> dict[Corruption | None, OpenVideo]:
        """The video once for each corruption: {None: with the features of its clean frames, corruption: with the features of the corrupted
        frames in the place of the clean ones}."""
        from aha.data.feature_cache import VideoFeatures

        video = self.scorer.open(item.path)
        if video.stores is None:
            raise ValueError("an ablation needs a feature cache")
        cache, key = video.stores
        for _ in () if video.stored else video.embed(self.scorer.model):
            pass  # stores the features
        clean = cache.get(key, video.limit)
        assert clean is not None  # stored a moment ago
        self.reused += len(clean.frames) if video.stored else 0
        self.encoded += 0 if video.stored else len(clean.frames)
        keys = {c: f"{key}-{c.kind}-{c.ratio:g}-{c.seed}-{len(clean.frames)}" for c in corruptions}
        bad = {c: found for c in corruptions if (found := cache.get(keys[c])) is not None}
        absent = [c for c in corruptions if c not in bad]
        for c, made in self._corrupted(item, video.duration, clean, absent).items():
            cache.put(keys[c], made)
            bad[c] = made
        videos: dict[Corruption | None, OpenVideo] = {None: video.with_features(clean)}
        for c in corruptions:
            whole_FPC = clean.features_FPC.clone()
            whole_FPC[bad_frames(c, video.duration, clean, item)] = bad[c].features_FPC
            videos[c] = video.with_features(VideoFeatures(clean.frames, whole_FPC, complete=True))
        return videos

    def _corrupted(
        self, item: Item, duration: float, clean: VideoFeatures, corruptions: Sequence[Corruption]
    ) -> dict[Corruption, VideoFeatures]:
        """Features of the bad frames of each corruption; the video is read once for all of them."""
        import torch

        from aha.data.feature_cache import VideoFeatures
        from aha.streaming.chunks import in_batches
        from aha.video.reader import iter_frames

        model, config, name = self.scorer.model, self.scorer.config, Path(item.path).stem
        hit = {c: set(bad_frames(c, duration, clean, item)) for c in corruptions}
        parts: dict[Corruption, list[torch.Tensor]] = {c: [clean.features_FPC[:0]] for c in corruptions}
        for batch in in_batches(enumerate(iter_frames(item.path, **config.reading())), config.chunk_frames) if corruptions else ():
            for c in corruptions:
                pictures = [torch.from_numpy(c.frame(f.frame_CHW, name, f.frame_index)) for k, f in batch if k in hit[c]]
                self.encoded_corrupted += len(pictures)
                if pictures:
                    with torch.inference_mode():
                        parts[c].append(model.used_patches(model.tower_features(torch.stack(pictures))).cpu())
        return {c: VideoFeatures([clean.frames[k] for k in sorted(hit[c])], torch.cat(parts[c]), complete=True) for c in corruptions}


def bad_frames(corruption: Corruption, duration: float, clean: VideoFeatures, item: Item) -> list[int]:
    """Which of the sampled frames lie in a second that the corruption makes worse, by their place among them."""
    hit = corruption.bad_seconds(duration, Path(item.path).stem)
    return [k for k, frame in enumerate(clean.frames) if math.floor(frame.time + 1e-6) in hit]


# ---------------------------------------------------------------- scoring


def changed(settings: Any, changes: Sequence[tuple[str, Any]]) -> Any:
    """A copy of a ScoreConfig or Selection with those of the changes that are fields of it."""
    own = {entry.name for entry in fields(settings)}
    return replace(settings, **{name: value for name, value in changes if name in own})


def score_all(
    choice: ModelChoice, config: ScoreConfig, selection: Selection, output: Path, settings: Sequence[tuple[tuple[str, Any], ...]]
) -> tuple[dict[tuple[tuple[str, Any], ...], Path], dict[str, int]]:
    """Score the data set under every one of `settings`: ({changes: prediction file}, counts of the vision tower)."""
    from tqdm import tqdm

    from aha.scoring import dataset, parts
    from aha.scoring.offline import Scorer

    configs = {changes: changed(replace(config, feature_cache=None), changes) for changes in settings}
    files = {changes: output / "predictions" / f"{file_name(changes)}.json" for changes in settings}
    listed = {changes: dataset.list_items(changed(selection, changes)) for changes in settings}
    folders = {changes: parts.parts_folder(files[changes], choice, configs[changes], listed[changes][0]) for changes in settings}
    done = {changes: parts.read_parts(folders[changes], items=listed[changes][0]) for changes in settings}
    model, tokenizer = choice.load()
    trained_on = dataset.trained_on_ids(choice)
    vision = Vision(Scorer(model, tokenizer, config))
    corruptions = [found.corruption for found in configs.values() if found.corruption is not None]
    first = listed[settings[0]][0]
    dataset.warn_trained_on(first, trained_on)
    frames_scored = 0
    for item in tqdm(first, desc=f"{len(settings)} settings", unit="video"):
        todo = [changes for changes in settings if item.key not in done[changes]]
        if not todo:
            continue
        try:
            videos, error = vision.videos(item, corruptions), None
        except UserError as failure:
            videos, error = {}, str(failure)
        for changes in todo:
            own = next(other for other in listed[changes][0] if other.key == item.key)
            record = {"key": item.key, "video": list(item.file), "error": error}
            if error is None:
                scorer = Scorer(model, tokenizer, configs[changes])
                stored = partial(videos.get, configs[changes].corruption)  # where time is measured, the tower's is part of it
                opened = partial(scorer.open, item.path) if configs[changes].measured else stored
                record = dataset.record_of(scorer, own, opened, trained_on)
                frames_scored += len(record["entry"]["debug_data"]) if "entry" in record else 0
            with parts.part_writer(folders[changes], 0, 1) as write:
                write(record)
    for changes in settings:
        items, missing = listed[changes]
        dataset.merge(files[changes], selection.benchmark, items, parts.read_parts(folders[changes], items=items), missing)
    counts = {
        "videos": len(first), "frames_encoded": vision.encoded, "corrupted_frames_encoded": vision.encoded_corrupted,
        "frames_reused": vision.reused, "frames_scored": frames_scored,
    }  # fmt: skip
    return files, counts


def file_name(changes: Sequence[tuple[str, Any]]) -> str:
    """A file name that says what was changed: "cache-sink-window-2048"; "default" for nothing."""
    return "-".join(f"{name}-{value}" for name, value in changes) or "default"


# ---------------------------------------------------------------- evaluation


def columns(dataset: str, predictions: Path, root: str | None, fusion: Fusion) -> dict[str, float | None]:
    """The numbers of one row."""
    task = load_task(dataset)
    wanted = list(dict.fromkeys(column.protocol for column in task.ablation))
    runs = {"random_runs": 1} if task.random_runs else {}
    found = task.evaluate(predictions, annotations=root, protocols=wanted, fusion=fusion, **runs)
    clock = found.get("clock")
    lost = {LOST: clock["lost"] / clock["arrived"]} if clock else {}
    return {column.label: leaf(found["protocols"], *column.place)["mean"] for column in task.ablation} | lost


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
    return table.block("ablations", names, lines) + "\n\n" + "\n".join(table.wrapped(vision))


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    lines = ["| study | row | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 2)]
    lines += [f"| {r['study']} | {r['name']} | " + " | ".join(table.shown(r["metrics"][name]) for name in names) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def study_list(text: str) -> list[str]:
    """ "cache,heads" -> ["cache", "heads"]."""
    studies = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [study for study in studies if study not in (*STUDIES, CLOCK)]
    if unknown or not studies:
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join((*STUDIES, CLOCK))}, separated by commas")
    return studies


def speed_list(text: str) -> list[str]:
    """ "1fps,machine" -> ["1fps", "machine"]. Raises UserError for one that is no speed."""
    speeds = [part.strip() for part in text.split(",")]
    for speed in speeds:
        cost_of(speed)
    return speeds


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.eval.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="tvsum", help="benchmark (default %(default)s)")
    parser.add_argument("--study", type=study_list, default=list(STUDIES), metavar="A,B",
                        help=f"of {','.join((*STUDIES, CLOCK))} (default: all but {CLOCK})")  # fmt: skip
    parser.add_argument("--speeds", type=speed_list, default=speed_list("1fps,5fps,20fps,machine"), metavar="A,B",
                        help="of --study clock, as --speed of aha score (default 1fps,5fps,20fps,machine)")  # fmt: skip
    add_flags(parser, ModelChoice)
    add_flags(parser, Selection, only=("data_root", "fold", "limit"))
    add_released_flag(parser)
    add_flags(parser, ScoreConfig, only=FLAGS)
    add_fusion_flags(parser, None, loads_model=True)
    parser.add_argument("--features", metavar="DIR", help="where vision features are kept (default OUTPUT/features)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for ablation.json, ablation.md and the prediction files")
    args = parser.parse_args(argv)
    output = check_output(args.output, overwrite=True)
    config = score_config_of(args, feature_cache=args.features or str(output / "features"))
    chosen = variants(args.study, config, given_weights(args), args.speeds)
    settings = list(dict.fromkeys(variant.changes for variant in chosen))
    with held(output):
        files, counts = score_all(
            choice_of(args), replace(config, window=None, sink_tokens=None), from_args(Selection, args), output, settings
        )  # fmt: skip
    if not has_uncertainty(next(iter(files.values()))):
        print("the model has no uncertainty head (an MMDuet adapter): epsilon is 0 in all rows")
        chosen = [replace(v, fusion=replace(v.fusion, epsilon=0.0)) for v in chosen if v.name != "without uncertainty"]
    rows = []
    for variant in chosen:
        numbers = columns(args.dataset, files[variant.changes], getattr(args, "data_root", None), variant.fusion)
        if CLOCK in args.study:
            numbers.setdefault(LOST, 0.0)
        row = {"study": variant.study, "name": variant.name, "score_options": variant.options}
        rows.append(row | {"weights": asdict(variant.fusion), "metrics": numbers})
    print("\n" + render(rows, counts))
    write_json(output / "ablation.json", {"rows": rows, "vision": counts, "settings": vars(args)})
    write_text(output / "ablation.md", markdown(rows))
    print(f"written: {output / 'ablation.json'}, ablation.md")


if __name__ == "__main__":
    run_command(main)
