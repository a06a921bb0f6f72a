"""A TVSum-format data set of generated videos, in the official folder layout.

    python -m aha.demo.dataset --output outputs/demo/tvsum

writes `ydata-tvsum50-v1_1/data/ydata-tvsum50-{anno,info}.tsv` and `ydata-tvsum50-v1_1/video/<id>.mp4`: 40 videos of 30 to 44 seconds in
4 categories, each with a title in plain words and 20 simulated annotators who rate 2-second shots from 1 to 5. What is important
depends on the title: a striped red thing on the grass matters under "All the red things in one video", not under "Back to the sea".
Two videos of the same fold share a third of their scenes under different titles; nothing is shared between folds, so held-out scenes
and backgrounds are new.
Everything follows from the seed. Files that are there already are kept: a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from aha.core.files import atomic_path, read_json, write_json, write_text
from aha.core.folds import folds
from aha.demo.scenes import COLOURS, PATTERNS, PLACES, Scene, Thing, draw_background, draw_frame, random_scene, random_thing
from aha.errors import UserError, run_command

ANNOTATORS = 20
SHOT_SECONDS = 2
CATEGORIES = ("CO", "OB", "PA", "PL")  # colours, one particular object, patterns, places
VIDEOS_PER_CATEGORY = 10
FRAME_RATES = (Fraction(8), Fraction(10), Fraction(25, 2))
FRAME_SIZES = ((384, 288), (384, 384), (288, 384))
TITLES = {
    "CO": (
        "All the {colour} things in one video",
        "Everything {colour}: a collection",
        "My favourite colour is {colour}",
        "How to find {colour} objects",
        "The {colour} compilation",
    ),
    "OB": (
        "How the {pattern} {colour} one moves around",
        "Where is the {pattern} {colour} thing?",
        "A day in the life of something {colour} and {pattern}",
        "The {pattern} {colour} one is back",
        "Chasing {pattern} {colour} objects",
    ),
    "PA": (
        "{Pattern} things at home",
        "Why {pattern} objects look so good",
        "A show of everything {pattern}",
        "{Pattern} is in fashion",
        "The {pattern} ones only",
    ),
    "PL": (
        "Back to the {place}",
        "{Place}: our best minutes",
        "Remember the {place}?",
        "A long walk and then the {place}",
        "Why we love the {place}",
    ),
}


@dataclass(frozen=True)
class Target:
    """What a title asks for; None = any."""

    colour: str | None = None
    pattern: str | None = None
    place: str | None = None

    def match(self, thing: Thing, place: str) -> float:
        """Share of the asked-for words that are true of a thing at a place."""
        wanted = [(self.colour, thing.colour), (self.pattern, thing.pattern), (self.place, place)]
        hits = [asked == has for asked, has in wanted if asked is not None]
        return sum(hits) / len(hits)

    def words(self) -> dict[str, str]:
        """The target's words as keyword arguments."""
        return {k: v for k, v in (("colour", self.colour), ("pattern", self.pattern), ("place", self.place)) if v is not None}


@dataclass(frozen=True)
class VideoPlan:
    """One video before it is drawn."""

    video_id: str
    category: str
    title: str
    target: Target
    width: int
    height: int
    fps: Fraction
    scenes: tuple[tuple[Scene, int], ...]  # scene, seconds (even)

    @property
    def seconds(self) -> int:
        return sum(seconds for _, seconds in self.scenes)

    @property
    def num_frames(self) -> int:
        return int(self.seconds * self.fps)


def importance(target: Target, scene: Scene) -> float:
    """True importance of a scene under a title, 0..1: the best match among its things, a larger thing counting a little more.

    Half a match (the colour without the pattern) is worth a third of a whole one.
    """
    best = 0.0
    for thing in scene.things:
        share = target.match(thing, scene.place)
        size = (thing.radius - 0.15) / 0.12
        best = max(best, (1.0 if share == 1 else 0.33 if share > 0 else 0.0) * (0.75 + 0.25 * size))
    return 0.05 + 0.95 * best


def fill_title(template: str, target: Target) -> str:
    """A title with the target's words put in."""
    words = target.words()
    return template.format(**words, **{key.capitalize(): word.capitalize() for key, word in words.items()})


def random_target(category: str, index: int, random: np.random.Generator) -> Target:
    """What the index-th title of a category asks for; the words of a category take turns, so that all of them occur."""
    colour, pattern, place = list(COLOURS)[index % len(COLOURS)], PATTERNS[index % len(PATTERNS)], PLACES[index % len(PLACES)]
    if category == "CO":
        return Target(colour=colour)
    if category == "PA":
        return Target(pattern=pattern)
    if category == "PL":
        return Target(place=place)
    return Target(colour=colour, pattern=str(random.choice(PATTERNS)))


def other_word(asked: str | None, words: Iterable[str], random: np.random.Generator) -> str:
    """A word that is not the one asked for."""
    return str(random.choice([word for word in words if word != asked]))


def different_thing(target: Target, random: np.random.Generator) -> Thing:
    """A thing that a title does not ask for; for a title of two words it often has one of them."""
    if target.colour is not None and target.pattern is not None and random.uniform() < 0.5:
        if random.uniform() < 0.5:
            return random_thing(random, colour=target.colour, pattern=other_word(target.pattern, PATTERNS, random))
        return random_thing(random, colour=other_word(target.colour, COLOURS, random), pattern=target.pattern)
    colour = other_word(target.colour, COLOURS, random) if target.colour else None
    pattern = other_word(target.pattern, PATTERNS, random) if target.pattern else None
    return random_thing(random, colour, pattern)


def random_title_scene(target: Target, other: Target, random: np.random.Generator) -> Scene:
    """A scene for a video whose title asks for `target`: 45% show it; 40% show what the partner video's title (`other`) asks for."""
    shown = random.uniform() < 0.45
    things = []
    if shown and target.place is None:
        things.append(random_thing(random, target.colour, target.pattern))
    if other.place is None and random.uniform() < 0.40:
        partner = random_thing(random, other.colour, other.pattern)
        if target.place is not None or target.match(partner, "") < 1:
            things.append(partner)
    while len(things) < 1 + (random.uniform() < 0.6):
        things.append(different_thing(target, random))
    things = [things[i] for i in random.permutation(len(things))]
    place: str | None
    if target.place is not None:
        place = target.place if shown else other_word(target.place, PLACES, random)
    else:
        place = other.place if random.uniform() < 0.40 else None
    return random_scene(random, things, place)


def plan_dataset(seed: int) -> list[VideoPlan]:
    """Plan all videos of the data set, in id order."""
    ids = [f"demo_{category}_{index:02d}" for category in CATEGORIES for index in range(VIDEOS_PER_CATEGORY)]
    categories = {i: i.split("_")[1] for i in ids}
    random = np.random.default_rng([seed, 1])
    offsets = {category: int(random.integers(100)) for category in CATEGORIES}
    targets = {i: random_target(c, offsets[c] + int(i[-2:]), random) for i, c in categories.items()}
    plans: dict[str, VideoPlan] = {}
    for members in folds(categories):
        partners = [members[j] for j in random.permutation(len(members))]
        for a, b in zip(partners[0::2], partners[1::2]):
            plans[a] = plan_video(a, targets[a], targets[b], (), seed)
            plans[b] = plan_video(b, targets[b], targets[a], plans[a].scenes, seed)
        if len(members) % 2:
            plans[partners[-1]] = plan_video(partners[-1], targets[partners[-1]], targets[partners[0]], (), seed)
    return [plans[i] for i in ids]


def plan_video(video_id: str, target: Target, other: Target, shared: tuple[tuple[Scene, int], ...], seed: int) -> VideoPlan:
    """Plan one video; every third scene is taken from `shared` (the partner's scenes) while there are any."""
    category, index = video_id.split("_")[1], int(video_id[-2:])
    random = np.random.default_rng([seed, 2, CATEGORIES.index(category), index])
    shared = tuple(shared[i] for i in random.permutation(len(shared)))
    seconds = int(random.integers(15, 23)) * 2
    scenes: list[tuple[Scene, int]] = []
    left = seconds
    while left > 0:
        length = min(int(random.choice([2, 4, 6], p=[0.4, 0.4, 0.2])), left)
        borrow = len(scenes) % 3 == 2 and len(scenes) // 3 < len(shared)
        scene = shared[len(scenes) // 3][0] if borrow else random_title_scene(target, other, random)
        scenes.append((scene, length))
        left -= length
    width, height = FRAME_SIZES[int(random.integers(len(FRAME_SIZES)))]
    return VideoPlan(
        video_id=video_id,
        category=category,
        title=fill_title(str(random.choice(TITLES[category])), target),
        target=target,
        width=width,
        height=height,
        fps=FRAME_RATES[int(random.integers(len(FRAME_RATES)))],
        scenes=tuple(scenes),
    )


def shot_of_frames(num_frames: int, fps: Fraction) -> np.ndarray:
    """Index of the 2-second shot of each frame [num_frames]; as in TVSum, shot k starts at frame floor(2k fps) + 1 (shot 0 at frame 0)."""
    starts = [0]
    while (start := int(SHOT_SECONDS * len(starts) * fps) + 1) < num_frames:
        starts.append(start)
    return np.searchsorted(np.array(starts), np.arange(num_frames), side="right") - 1


def scene_of_shots(plan: VideoPlan) -> list[int]:
    """Index of the scene that each 2-second shot shows."""
    return [index for index, (_, seconds) in enumerate(plan.scenes) for _ in range(seconds // SHOT_SECONDS)]


def annotate(plan: VideoPlan, seed: int) -> np.ndarray:
    """Ratings 1..5 of the simulated annotators, int [ANNOTATORS, num_frames].

    Every annotator has a bias, an attention to the title, a taste of their own for each scene and a slip from shot to shot. The figures
    are set so that two annotators agree about as much as in TVSum (mean Kendall tau-b of pairs 0.15 to 0.30).
    """
    random = np.random.default_rng([seed, 3, CATEGORIES.index(plan.category), int(plan.video_id[-2:])])
    scenes = scene_of_shots(plan)
    truth_S = np.array([importance(plan.target, scene) for scene, _ in plan.scenes])[scenes]
    bias_A1 = random.normal(0, 0.10, (ANNOTATORS, 1))
    attention_A1 = random.uniform(0.15, 0.75, (ANNOTATORS, 1))
    taste_AS = random.normal(0, 0.17, (ANNOTATORS, len(plan.scenes)))[:, scenes]
    slip_AS = random.normal(0, 0.21, (ANNOTATORS, len(scenes)))
    wanted_AS = 0.25 + bias_A1 + attention_A1 * truth_S[None] + taste_AS + slip_AS
    ratings_AS = np.clip(np.floor(1 + 5 * wanted_AS), 1, 5).astype(int)
    return ratings_AS[:, shot_of_frames(plan.num_frames, plan.fps)]


def write_video(plan: VideoPlan, path: Path) -> None:
    """Draw a video and write it as H.264, atomically. Scenes change at even seconds; the ratings, as in TVSum, one frame later."""
    scenes = scene_of_shots(plan)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=plan.fps, options={"preset": "veryfast", "crf": "26", "g": "48", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, "yuv420p"
        current, background, first = -1, None, 0
        for index in range(plan.num_frames):
            shown = scenes[int(index / (SHOT_SECONDS * plan.fps))]
            if shown != current:
                current, first = shown, index
                scene = plan.scenes[current][0]
                background = draw_background(scene.place, scene.background_seed, plan.width, plan.height)
            picture = draw_frame(scene, float((index - first) / plan.fps), plan.width, plan.height, background)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_dataset(folder: str | os.PathLike, seed: int = 0, processes: int = 2) -> Path:
    """Write what is missing of the data set under `folder` and return `folder`/ydata-tvsum50-v1_1.

    Raises UserError where the folder holds a data set of another seed.
    """
    root = Path(folder) / "ydata-tvsum50-v1_1"
    marker = root / "demo.json"
    plans = plan_dataset(seed)
    settings = {"made_by": "aha.demo.dataset", "version": 4, "seed": seed}
    if marker.exists() and read_json(marker, "demo data set marker") != settings:
        raise UserError(f"{root} holds a demo data set made with other settings; delete the folder or choose another --output.")
    write_json(marker, settings)
    for unfinished in (root / "video").glob(".*.mp4"):  # of a run that was killed
        unfinished.unlink()
    missing = [plan for plan in plans if not (root / "video" / f"{plan.video_id}.mp4").exists()]
    if missing:
        with ProcessPoolExecutor(min(processes, len(missing)), mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(write_video, plan, root / "video" / f"{plan.video_id}.mp4") for plan in missing]
            for job in tqdm(jobs, desc="drawing videos", unit="video"):
                job.result()
    write_tables(plans, root / "data", seed)
    return root


def write_tables(plans: list[VideoPlan], folder: Path, seed: int) -> None:
    """Write `ydata-tvsum50-info.tsv` and `ydata-tvsum50-anno.tsv`."""
    info = ["category\tvideo_id\ttitle\turl\tlength"]
    rows = []
    for plan in plans:
        length = f"{plan.seconds // 60}:{plan.seconds % 60:02d}"
        info.append(f"{plan.category}\t{plan.video_id}\t{plan.title}\tgenerated\t{length}")
        rows += [f"{plan.video_id}\t{plan.category}\t{','.join(map(str, row))}" for row in annotate(plan, seed)]
    write_text(folder / "ydata-tvsum50-info.tsv", "\n".join(info) + "\n")
    write_text(folder / "ydata-tvsum50-anno.tsv", "\n".join(rows) + "\n")


def mixture(official: Path, fps: float, max_num_frames: int) -> list[dict[str, Any]]:
    """The contents of a mixture file (configs/datasets) for the data set that `make_dataset` made; its index goes beside it."""
    return [
        {
            "name": "tvsum", "type": "tvsum", "videos": str(official / "video"),
            "annotations": str(official / "data/ydata-tvsum50-anno.tsv"), "info": str(official / "data/ydata-tvsum50-info.tsv"),
            "index": str(official.parent / "videos_metadata.json"), "weight": 1.0, "fps": fps, "max_num_frames": max_num_frames,
            "source": "python -m aha.demo.dataset",
        }
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.demo.dataset", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", default="outputs/demo/tvsum", help="folder to write to (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of videos, titles and annotators (default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="videos drawn at the same time (default %(default)s)")
    args = parser.parse_args(argv)
    print(make_dataset(args.output, args.seed, args.processes))


if __name__ == "__main__":
    run_command(main)
