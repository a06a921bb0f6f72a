"""Make the demo's base model: a small LLaVA-OneVision-layout checkpoint pretrained on generated pictures, and an MMDuet-layout adapter.

    bash scripts/make_demo_base.sh          (= python -m aha.demo.pretrain --output aha/demo/checkpoints)

Three stages, as for the real models, all seeded. Nothing of the demo's data set is seen: other scenes and wordings, no importance scores.
1. vision: tower and projector learn to put each of a picture's 49 cells near the vectors of the words for what is there
   (picture-word alignment, what SigLIP brings along);
2. language: the decoder learns, over streams of a few frames, to point at what a query asks for, frame by frame (with read-outs that are
   thrown away afterwards), and to describe the last frame in words (lm_head);
3. MMDuet adapter: LoRA on longer streams; the informative head learns to tell a new scene. The relevance head stays untrained.

Shapes: B pictures or streams, T tokens, F frames of a stream, K cells (49), C tower width, H decoder width.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from llava_next import LlavaNextConfig, LlavaNextForCausalLM
from llava_next.checkpoint import load_base, save_llava_next
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from aha.conversation import DEFAULT_SYSTEM_PROMPT, DuetFormat, Turn, load_tokenizer
from aha.demo.dataset import Target
from aha.demo.language import caption_of, name_of, query_for, random_target, save_tokenizer, train_tokenizer
from aha.demo.scenes import (
    COLOURS,
    PATTERNS,
    PLACES,
    Scene,
    Thing,
    coverage,
    draw_background,
    draw_frame,
    letterbox,
    random_scene,
    random_thing,
)
from aha.errors import run_command
from aha.models.adapters import add_lora, new_lora, save_adapter, trainable
from aha.models.config import AhaConfig
from aha.models.model import AhaModel

VOCABULARY = 957  # byte pairs; three control tokens and <image> follow
SIZES = ((384, 384), (384, 288), (288, 384), (384, 216))
WORDS = {"colour": list(COLOURS), "pattern": list(PATTERNS), "place": list(PLACES)}
MOST_THINGS = 3


# ---- the untrained model ----


def new_model(seed: int) -> LlavaNextForCausalLM:
    """SigLIP tower 64 wide with 1 stored layer, Qwen2 decoder 96 wide with 4 layers."""
    torch.manual_seed(seed)
    model = LlavaNextForCausalLM(LlavaNextConfig(
        vocab_size=976, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        bos_token_id=VOCABULARY + 1, eos_token_id=VOCABULARY + 2, image_token_index=VOCABULARY + 3,
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_channels": 3, "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
        },
    ))  # fmt: skip
    initialise_tower(model)
    initialise_decoder(model)
    return model


@torch.no_grad()
def initialise_tower(model: LlavaNextForCausalLM) -> None:
    """Start the patch embedding from smooth waves (2-D cosines of brightness and of two colour differences), the positions from sines and
    attention from "look at what is like yourself", that is near by: a short training finds these slowly by itself."""
    vision_model = model.model.vision_tower.vision_tower["vision_model"]
    embeddings = vision_model.embeddings
    width, _, patch, _ = embeddings.patch_embedding.weight.shape
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    colour_axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    orders = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    waves = [(0, u, v) for u, v in orders[:40]] + [(c, u, v) for c in (1, 2) for u, v in orders[:12]]
    for row, (axis, u, v) in zip(embeddings.patch_embedding.weight, waves[:width]):
        wave = torch.outer(torch.cos(v * place), torch.cos(u * place))
        kernel = colour_axes[axis][:, None, None] * wave
        row.copy_(kernel / kernel.norm() * 0.5)
    embeddings.patch_embedding.bias.zero_()
    side = model.config.patches_per_side
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rate = torch.exp(-torch.arange(width // 4) / (width // 4) * math.log(60.0))
    angles = [axis.flatten()[:, None] * rate for axis in (x, y)]
    table = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)
    embeddings.position_embedding.weight.copy_(0.3 * table)
    for layer in vision_model.encoder.layers:
        same = torch.randn(width, width) * 1.5 / width**0.5
        layer.self_attn.q_proj.weight.copy_(same)
        layer.self_attn.k_proj.weight.copy_(same)


@torch.no_grad()
def initialise_decoder(model: LlavaNextForCausalLM) -> None:
    """Linear layers with unit gain, and queries equal to keys, so that a token attends to tokens like itself from the start
    (Trockman and Kolter 2023, "Mimetic initialization of self-attention layers"): a picture's "red" finds the query's "red"."""
    layers = model.model.layers
    for name, parameter in model.model.layers.named_parameters():
        if parameter.ndim == 2:
            gain = 1 / math.sqrt(2 * len(layers)) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))
    for layer in layers:
        attention = layer.self_attn
        groups = attention.k_proj.weight.view(model.config.num_key_value_heads, -1, model.config.hidden_size)
        attention.q_proj.weight.copy_(groups.repeat_interleave(model.config.num_attention_heads // len(groups), 0).flatten(0, 1))
    embeddings = model.model.embed_tokens.weight
    nn.init.normal_(embeddings, std=0.5)
    embeddings += 0.3 * torch.randn(embeddings.shape[1])  # a direction that all text has and pictures do not
    nn.init.normal_(model.lm_head.weight, std=0.05)


def word_vectors(model: LlavaNextForCausalLM, duet: DuetFormat) -> dict[str, Tensor]:
    """Family -> a vector of unit mean square for each word [words, H], all orthogonal. Every spelling of a word (capital or not, with or
    without a space before it) that is one token gets its vector as embedding, at half the size."""
    hidden = model.config.hidden_size
    total = sum(map(len, WORDS.values()))
    directions = torch.linalg.qr(torch.randn(hidden, total))[0].T * math.sqrt(hidden)
    vectors = dict(zip(WORDS, directions.split([len(words) for words in WORDS.values()])))
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight
        common = embeddings.mean(0)
        for family, words in WORDS.items():
            for word, vector in zip(words, vectors[family]):
                for spelling in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
                    ids = duet.encode(spelling)
                    if len(ids) == 1:
                        embeddings[ids[0]] = 0.5 * vector + common
    return vectors


# ---- pictures ----


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
    frames, places, scenes = [], [], []
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


# ---- stage 1: vision ----


def cell_labels(pictures: Pictures) -> dict[str, Tensor]:
    """Family -> int [B, K]: index of the word that is true of most of each cell, one past the last for "no such word here", -100 where the
    cell is a border case."""
    best, index = pictures.cover[:, :-1].max(1)
    thing = torch.gather(pictures.words, 1, index[..., None].expand(-1, -1, 2))
    bare = pictures.cover[:, -1]
    labels = {}
    for family, value, share in (
        ("colour", thing[..., 0], best), ("pattern", thing[..., 1], best), ("place", pictures.place[:, None].expand_as(bare), bare)
    ):  # fmt: skip
        label = torch.where(share >= 0.4, value, len(WORDS[family]))
        labels[family] = torch.where((share > 0.1) & (share < 0.4), -100, label)
    return labels


def schedule(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5% of the steps, then a cosine to zero."""
    warm = max(1, steps // 20)
    return peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def pretrain_vision(
    model: LlavaNextForCausalLM, vectors: dict[str, Tensor], seed: int, steps: int, lr: float = 2e-3
) -> None:
    """Train tower and projector: the scalar product of a cell with a word's vector says how well the word fits the cell."""
    torch.manual_seed(seed)
    tower, projector = model.model.vision_tower, model.model.mm_projector
    device = model.lm_head.weight.device
    vectors = {family: vector.to(device) for family, vector in vectors.items()}
    nothing = {family: nn.Parameter(torch.zeros(1, device=device)) for family in WORDS}
    parameters = [*tower.parameters(), *projector.parameters(), *nothing.values()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    hidden, began, right = model.config.hidden_size, time.time(), []
    for step, (pictures, _) in enumerate(drawn_ahead(seed, 20, steps, 12)):
        labels = {family: label.to(device) for family, label in cell_labels(pictures).items()}
        visual_BKH = model.project(tower(model.pixel_values(pictures.frames)))
        unit_BKH = F.rms_norm(visual_BKH, (hidden,))
        logits = {
            family: torch.cat([unit_BKH @ vectors[family].T / math.sqrt(hidden), nothing[family].expand(*unit_BKH.shape[:2], 1)], -1)
            for family in WORDS
        }
        size = 0.5 * visual_BKH.square().mean(-1).add(1e-6).log()  # kept near that of the word embeddings
        misfit = sum(F.cross_entropy(logits[family].flatten(0, 1), labels[family].flatten()) for family in WORDS)
        loss = misfit + 0.1 * (size - math.log(0.6)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right.append([share_right(logits[family], labels[family]) for family in WORDS])
        if (step + 1) % 50 == 0:
            told = " ".join(f"{family} {share:.3f}" for family, share in zip(WORDS, np.mean(right[-25:], 0)))
            print(f"vision {step + 1}/{steps} loss {loss.item():.3f}, words right: {told}  {time.time() - began:.0f} s", flush=True)


def share_right(logits_BKW: Tensor, label_BK: Tensor) -> float:
    """Share of right words among the cells that have one."""
    valid = (label_BK != -100) & (label_BK != logits_BKW.shape[-1] - 1)
    return (logits_BKW.argmax(-1) == label_BK)[valid].float().mean().item()


# ---- stage 2: language ----


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
    return FrameBank(torch.cat(visual), *(np.concatenate(column) for column in zip(*pictures)), all_scenes)


@dataclass
class Streams:
    """B conversations with F frames each, padded on the right to T tokens.

    input_ids, position_ids: [B, T]; frames: [B, F], index into the bank; frame_ends: [B, F], position of each frame's last token; labels:
    [B, T], next-token targets (-100 = none); match: float [B, F], 1 where what the query asks for is seen; cells: float [B, F, K], share of
    each cell that it fills; new_scene: int [B, F], 1 where the scene has just changed.
    """

    input_ids: Tensor
    position_ids: Tensor
    frames: Tensor
    frame_ends: Tensor
    labels: Tensor
    match: Tensor
    cells: Tensor
    new_scene: Tensor

    def to(self, device: torch.device) -> Streams:
        return Streams(**{name: value.to(device) for name, value in vars(self).items()})


def draw_streams(
    bank: FrameBank, duet: DuetFormat, random: np.random.Generator, count: int, num_frames: int, longest_gap: int,
    system: str = DEFAULT_SYSTEM_PROMPT, plain: bool = False,
) -> Streams:
    """Random queries over random frames. Half of the streams begin up to `longest_gap` positions after their query, as if the video had
    been running for a while: so short streams teach attention over long distances. `plain` queries are names alone."""
    frames, match, cells, changes, rendered = [], [], [], [], []
    for _ in range(count):
        scene = bank.scenes[int(random.integers(len(bank.scenes)))]
        thing = scene.things[int(random.integers(len(scene.things)))] if scene.things else None
        target = random_target(random, thing, scene.place)
        hit = bank.matches(target)
        chosen, change = draw_runs(hit.any(1), random, num_frames)
        frames.append(chosen)
        changes.append(change)
        match.append(hit[chosen].any(1))
        cells.append((bank.cover[chosen] * hit[chosen][..., None]).sum(1))
        rendered.append(duet.render([
            Turn("system", system), Turn("user", name_of(target, random) if plain else query_for(target, random)),
            Turn("stream", num_frames=num_frames),
            Turn("assistant", caption_of(bank.scenes[chosen[-1] // 2]), learn=True),
        ]))  # fmt: skip
    length = max(len(r.input_ids) for r in rendered)
    input_ids, labels = torch.full((count, length), duet.pad_id), torch.full((count, length), -100)
    position_ids = torch.arange(length).repeat(count, 1)
    for b, r in enumerate(rendered):
        ids, learn = torch.tensor(r.input_ids), torch.tensor(r.learn_mask)
        input_ids[b, : len(ids)] = ids
        labels[b, : len(ids) - 1] = torch.where(learn[1:], ids[1:], -100)
        if random.uniform() < 0.5:
            position_ids[b, r.image_token_positions[0] :] += int(random.integers(longest_gap + 1))
    return Streams(
        input_ids, position_ids, torch.tensor(np.stack(frames)), torch.tensor([r.frame_token_positions for r in rendered]), labels,
        torch.tensor(np.stack(match)).float(), torch.tensor(np.stack(cells)).float(), torch.tensor(np.stack(changes)).long(),
    )  # fmt: skip


def draw_runs(hit_N: np.ndarray, random: np.random.Generator, num_frames: int, longest: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a stream [num_frames], in runs that show one scene, and 1 where a run begins; half of the runs show what is asked for."""
    inside = np.flatnonzero(hit_N)
    chosen, change = [], []
    while len(chosen) < num_frames:
        pick = int(random.choice(inside)) if len(inside) and random.uniform() < 0.4 else int(random.integers(len(hit_N)))
        run = min(int(random.integers(1, longest + 1)), num_frames - len(chosen))
        chosen += [pick ^ (i % 2) for i in range(run)]
        change += [1] + [0] * (run - 1)
    return np.array(chosen), np.array(change)


WEIGHTS = {"match": 1.0, "cells": 3.0, "early cells": 3.0, "caption": 0.5, "new scene": 0.5}


class Pointer(nn.Module):
    """Read-outs of hidden states, for pretraining alone: does the frame match (at its last token); does the cell match (at each token);
    and the same of cells half-way through the decoder, which makes the layers learn in order."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.match, self.cells, self.early_cells = (nn.Linear(hidden, 1) for _ in range(3))


def stream_losses(
    model: LlavaNextForCausalLM, streams: Streams, bank: FrameBank, pointer: Pointer
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Loss parts, the match logits [B, F] and the hidden states of the frames' last tokens [B, F, H]."""
    visual_NKH = bank.visual[streams.frames.flatten()].float()
    output = model.model(
        inputs_embeds=model.joint_embed(streams.input_ids, visual_NKH), position_ids=streams.position_ids,
        attention_mask=torch.ones_like(streams.input_ids),  # without it, gaps in position_ids mean borders between packed sequences
        use_cache=False, output_hidden_states=True,
    )  # fmt: skip
    hidden_BTH, middle_BTH = output.last_hidden_state, output.hidden_states[model.config.num_hidden_layers // 2]
    ends_BFH = hidden_BTH.gather(1, streams.frame_ends[..., None].expand(-1, -1, hidden_BTH.shape[-1]))
    image_BT = streams.input_ids == model.config.image_token_index
    learn_BT = streams.labels != -100
    match_BF = pointer.match(ends_BFH)[..., 0]
    cells_M = pointer.cells(hidden_BTH[image_BT])[..., 0]
    early_M = pointer.early_cells(F.rms_norm(middle_BTH[image_BT], middle_BTH.shape[-1:]))[..., 0]
    rare = torch.tensor(4.0, device=cells_M.device)  # few cells match
    parts = {
        "match": F.binary_cross_entropy_with_logits(match_BF, streams.match),
        "cells": F.binary_cross_entropy_with_logits(cells_M, streams.cells.flatten(), pos_weight=rare),
        "early cells": F.binary_cross_entropy_with_logits(early_M, streams.cells.flatten(), pos_weight=rare),
        "caption": F.cross_entropy(model.lm_head(hidden_BTH[learn_BT]), streams.labels[learn_BT]),
    }
    return parts, match_BF, ends_BFH


class Progress:
    """Prints means of the last loss parts and of how often the match was right, every `every` steps."""

    def __init__(self, name: str, steps: int, every: int) -> None:
        self.name, self.steps, self.every = name, steps, every
        self.began, self.rows = time.time(), []

    def add(self, parts: dict[str, Tensor], match_BF: Tensor, streams: Streams) -> None:
        self.rows.append([*(part.item() for part in parts.values()), ((match_BF > 0) == (streams.match > 0.5)).float().mean().item()])
        if len(self.rows) % self.every == 0:
            told = " ".join(f"{name} {value:.3f}" for name, value in zip([*parts, "right"], np.mean(self.rows[-self.every :], 0)))
            print(f"{self.name} {len(self.rows)}/{self.steps} {told}  {time.time() - self.began:.0f} s", flush=True)


@dataclass(frozen=True)
class Lesson:
    """Streams of a part of stage 2: share of the steps, frames a stream, streams a step, with the system prompt or a short one."""

    share: float
    num_frames: int
    batch: int
    system: str


LESSONS = (Lesson(0.45, 1, 48, "Look."), Lesson(0.25, 4, 20, "Look."), Lesson(0.30, 12, 8, DEFAULT_SYSTEM_PROMPT))


def pretrain_language(
    model: LlavaNextForCausalLM, bank: FrameBank, duet: DuetFormat, seed: int, steps: int, lr: float = 1e-3
) -> Pointer:
    """Train the decoder, lesson by lesson: single pictures first (with plain queries for a while), then longer and longer streams."""
    torch.manual_seed(seed)
    random = np.random.default_rng([seed, 22])
    device = model.lm_head.weight.device
    pointer = Pointer(model.config.hidden_size).to(device)
    decoder = [p for n, p in model.named_parameters() if not n.startswith(("model.vision_tower", "model.mm_projector")) and p.requires_grad]
    parameters = [*decoder, *pointer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    progress = Progress("language", steps, 50)
    plan = [lesson for lesson in LESSONS for _ in range(round(lesson.share * steps))]
    for step, lesson in enumerate(plan):
        streams = draw_streams(
            bank, duet, random, lesson.batch, lesson.num_frames, longest_gap=2400, system=lesson.system, plain=step < 0.2 * steps
        ).to(device)
        parts, match_BF, _ = stream_losses(model, streams, bank, pointer)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, len(plan), lr)
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.add(parts, match_BF, streams)
    return pointer


# ---- stage 3: the MMDuet adapter ----


def train_adapter(
    base: Path, bank: FrameBank, duet: DuetFormat, pointer: Pointer, seed: int, steps: int, lr: float = 1e-3
) -> AhaModel:
    """MMDuet's two heads and LoRA on the base in folder `base`, trained on streams of 36 frames.

    The informative head learns to tell a new scene; LoRA and lm_head go on pointing and describing. The relevance head stays random: no
    importance score has been shown to it, so the untrained row of the demo's table is near chance.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng([seed, 23])
    hidden, device = pointer.match.in_features, pointer.match.weight.device
    heads = {"informative_head.weight": 0.02 * torch.randn(2, hidden), "relevance_head.weight": 0.02 * torch.randn(2, hidden)}
    model = load_base(
        base, model_class=AhaModel, config_class=AhaConfig, device=device, new_parameters=heads, relevance_outputs=2, uncertainty=False
    )
    model.config.image_token_index = duet.image_id
    add_lora(model, new_lora())
    trainable(model, ["lm_head", "informative_head"])
    parameters = [*(p for p in model.parameters() if p.requires_grad), *pointer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    model.train()
    progress = Progress("adapter", steps, 25)
    for step in range(steps):
        streams = draw_streams(bank, duet, random, 2, 36, longest_gap=600).to(device)
        parts, match_BF, ends_BFH = stream_losses(model, streams, bank, pointer)
        parts["new scene"] = F.cross_entropy(model.informative_head(ends_BFH).flatten(0, 1), streams.new_scene.flatten())
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, steps, lr)
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.add(parts, match_BF, streams)
    blind_relevance_head(model, bank, duet, random)
    return model.eval()


@torch.no_grad()
def blind_relevance_head(model: AhaModel, bank: FrameBank, duet: DuetFormat, random: np.random.Generator) -> None:
    """Take out of the random relevance head what it happens to see of "matches the query": a random direction may lie along it."""
    device = model.lm_head.weight.device
    model.eval()
    streams = draw_streams(bank, duet, random, 8, 36, longest_gap=600).to(device)
    _, _, ends_BFH = stream_losses(model, streams, bank, Pointer(model.config.hidden_size).to(device))
    hit = streams.match > 0.5
    direction_H = F.normalize(ends_BFH[hit].mean(0) - ends_BFH[~hit].mean(0), dim=0)
    weight_2H = model.relevance_head.weight
    weight_2H -= torch.outer(weight_2H @ direction_H, direction_H)


# ---- files ----

BASE, ADAPTER = "llava-onevision-qwen2-demo-ov", "mmduet-demo"


def save_base(model: LlavaNextForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """The base in the published layout, float16; its configuration names one layer more than the tower stores, as published ones do."""
    stored = model.config.vision_config
    model.config.vision_config = {**stored, "num_hidden_layers": stored["num_hidden_layers"] + 1}
    save_llava_next(model.half(), folder)
    model.float()
    model.config.vision_config = stored
    save_tokenizer(tokenizer, folder, image_token=False)


def save_mmduet(model: AhaModel, tokenizer: Tokenizer, folder: Path) -> None:
    half = {name: parameter.detach().half() for name, parameter in model.named_parameters()}
    save_adapter(model, folder, base=BASE, state=half)
    save_tokenizer(tokenizer, folder, image_token=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.demo.pretrain", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", default="aha/demo/checkpoints", help="folder for the two checkpoints (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default %(default)s)")
    parser.add_argument("--vision_steps", type=int, default=600, help="batches of 24 pictures (default %(default)s)")
    parser.add_argument("--bank_scenes", type=int, default=2400, help="scenes for stages 2 and 3, two pictures each (default %(default)s)")
    parser.add_argument("--language_steps", type=int, default=1000, help="batches of short streams (default %(default)s)")
    parser.add_argument("--adapter_steps", type=int, default=100, help="batches of long streams (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    args = parser.parse_args(argv)
    output = Path(args.output)
    tokenizer = train_tokenizer(args.seed, VOCABULARY)
    model = new_model(args.seed)
    save_base(model, tokenizer, output / BASE)
    duet = DuetFormat(load_tokenizer(output / BASE))
    vectors = word_vectors(model, duet)
    model.to(args.device)
    pretrain_vision(model, vectors, args.seed, args.vision_steps)
    bank = fill_bank(model, args.seed, args.bank_scenes)
    pointer = pretrain_language(model, bank, duet, args.seed, args.language_steps)
    save_base(model, tokenizer, output / BASE)
    save_mmduet(train_adapter(output / BASE, bank, duet, pointer, args.seed, args.adapter_steps), tokenizer, output / ADAPTER)
    size = sum(path.stat().st_size for path in output.rglob("*.safetensors")) / 1e6
    print(f"wrote {output / BASE} and {output / ADAPTER}, {size:.2f} MB of weights")


if __name__ == "__main__":
    run_command(main)
