"""Pictures with their truth for pretraining, and a bank of pictures already seen through the tower.

Shapes: B pictures, N pictures of a bank, K cells (49), H decoder width.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from llava_next import LlavaNextForCausalLM
from torch import Tensor
from tqdm import tqdm

from aha.conversation import IGNORE_INDEX
from aha.demo.dataset import Target
from aha.demo.scenes import PLACES, Scene, Thing, coverage, draw_background, draw_frame, letterbox, random_scene, random_thing
from aha.demo.small_model import WORDS

SIZES = ((384, 384), (384, 288), (288, 384), (384, 216))
MOST_THINGS = 3


@dataclass
class Pictures:
    """frames: uint8 [B, 3, 384, 384]. cover: float32 [B, 4, K], share of each cell that shows thing 0, 1, 2 and the bare place.
    words: int [B, 3, 2], index of each thing's colour and pattern, -1 where there is no such thing. place: int [B]."""

    frames: Tensor
    cover: Tensor
    words: Tensor
    place: Tensor


def draw_pictures(random: np.random.Generator, count: int) -> tuple[Pictures, list[Scene]]:
    """Two pictures each of `count` random scenes, at different moments; four scenes share a background, the slowest thing to draw."""
    total = 2 * count
    frames: list[np.ndarray] = []
    places: list[int] = []
    scenes: list[Scene] = []
    covers, words = np.zeros((total, MOST_THINGS + 1, 49), np.float32), np.full((total, MOST_THINGS, 2), -1)
    for index in range(count):
        if index % 4 == 0:
            width, height = SIZES[int(random.integers(len(SIZES)))]
            place, seed = str(random.choice(PLACES)), int(random.integers(2**31))
            background = draw_background(place, seed, width, height)
        things = random_things(random)
        scene = Scene(place, seed, random_scene(random, things).things)
        scenes.append(scene)
        for moment in random.uniform(0, 6, 2):
            seen = coverage(scene, moment, width, height).reshape(len(things) + 1, 49)
            covers[len(frames), : len(things)], covers[len(frames), -1] = seen[:-1], seen[-1]
            for k, thing in enumerate(scene.things):
                words[len(frames), k] = WORDS["colour"].index(thing.colour), WORDS["pattern"].index(thing.pattern)
            places.append(PLACES.index(place))
            frames.append(letterbox(draw_frame(scene, moment, width, height, background)))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return Pictures(pixels, torch.from_numpy(covers), torch.from_numpy(words), torch.tensor(places)), scenes


def draw_batch(seed: tuple[int, ...], count: int) -> tuple[Pictures, list[Scene]]:
    torch.set_num_threads(1)
    return draw_pictures(np.random.default_rng(seed), count)


def drawn_ahead(seed: int, stage: int, batches: int, count: int) -> Iterator[tuple[Pictures, list[Scene]]]:
    """Batches of pictures, drawn by other processes while the model trains. Each batch has its own seed: the number of processes changes
    nothing."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future] = deque()
        for batch in range(batches + 2 * workers):
            if batch < batches:
                waiting.append(pool.submit(draw_batch, (seed, stage, batch), count))
            if batch >= 2 * workers:
                yield waiting.popleft().result()


def random_things(random: np.random.Generator) -> list[Thing]:
    count = int(random.choice(MOST_THINGS + 1, p=[0.04, 0.40, 0.42, 0.14]))
    return [random_thing(random) for _ in range(count)]


def cell_labels(pictures: Pictures) -> dict[str, Tensor]:
    """Family -> int [B, K]: index of the word that is true of most of each cell, one past the last for "no such word here", none where the
    cell is a border case."""
    best, index = pictures.cover[:, :-1].max(1)
    thing = torch.gather(pictures.words, 1, index[..., None].expand(-1, -1, 2))
    bare = pictures.cover[:, -1]
    labels = {}
    for family, value, share in (
        ("colour", thing[..., 0], best), ("pattern", thing[..., 1], best), ("place", pictures.place[:, None].expand_as(bare), bare)
    ):  # fmt: skip
        label = torch.where(share >= 0.4, value, len(WORDS[family]))
        labels[family] = torch.where((share > 0.1) & (share < 0.4), IGNORE_INDEX, label)
    return labels


@dataclass
class FrameBank:
    """Many pictures, seen through the frozen tower and projector. N pictures; neighbours 2n and 2n + 1 are two moments of the same scene.

    visual: float16 [N, K, H]; cover: float32 [N, 4, K], words: int [N, 3, 2], place: int [N] as in Pictures; scenes: [N / 2].
    """

    visual: Tensor
    cover: np.ndarray
    words: np.ndarray
    place: np.ndarray
    scenes: list[Scene]

    def matches(self, target: Target) -> np.ndarray:
        """bool [N, 4]: the things, or the bare place, that a query asks for (and that can be seen)."""
        hit = np.zeros(self.cover.shape[:2], bool)
        if target.place is not None:
            hit[:, -1] = self.place == PLACES.index(target.place)
        else:
            hit[:, :-1] = True
            for i, word in enumerate((target.colour, target.pattern)):
                if word is not None:
                    hit[:, :-1] &= self.words[..., i] == list(WORDS.values())[i].index(word)
        return hit & (self.cover.sum(-1) > 0.5)


@torch.no_grad()
def fill_bank(model: LlavaNextForCausalLM, seed: int, scenes: int) -> FrameBank:
    visual, pictures, all_scenes = [], [], []
    batches = drawn_ahead(seed, 21, scenes // 16, 16)
    for drawn, new_scenes in tqdm(batches, total=scenes // 16, desc="looking at pictures", unit="batch", mininterval=10):
        visual.append(model.visual_embed(drawn.frames).half())
        pictures.append((drawn.cover.numpy(), drawn.words.numpy(), drawn.place.numpy()))
        all_scenes += new_scenes
    cover, words, place = (np.concatenate(column) for column in zip(*pictures))
    return FrameBank(torch.cat(visual), cover, words, place, all_scenes)
