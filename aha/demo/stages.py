"""The three stages in which the demo's base and its MMDuet-layout adapter are made (aha.demo.pretrain says what each learns).

Shapes: B pictures or streams, T tokens, F frames of a stream, K cells (49), C tower width, H decoder width.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from llava_next import LlavaNextForCausalLM, load_base, save_llava_next
from tokenizers import Tokenizer
from torch import Tensor, nn

from aha.conversation import DEFAULT_SYSTEM_PROMPT, IGNORE_INDEX, DuetFormat, load_tokenizer
from aha.demo.language import save_tokenizer, train_tokenizer
from aha.demo.pictures import FrameBank, cell_labels, drawn_ahead, fill_bank
from aha.demo.small_model import VOCABULARY, WORDS, embed_words, new_model, new_word_vectors
from aha.demo.streams import Streams, draw_streams
from aha.models.adapters import add_lora, new_lora, save_adapter, trainable
from aha.models.config import AhaConfig
from aha.models.model import AhaModel

# ---- stage 1: vision ----


def schedule(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5% of the steps, then a cosine to zero."""
    warm = max(1, steps // 20)
    return peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def pretrain_vision(model: LlavaNextForCausalLM, seed: int, steps: int, lr: float = 4e-3) -> dict[str, Tensor]:
    """Train tower, projector and word vectors: the scalar product of a cell with a word's vector says how well the word fits the cell.
    Returns the vectors."""
    torch.manual_seed(seed)
    tower, projector = model.model.vision_tower, model.model.mm_projector
    device = model.lm_head.weight.device
    vectors: dict[str, Tensor] = {family: nn.Parameter(vector.to(device)) for family, vector in new_word_vectors(model).items()}
    nothing = {family: nn.Parameter(torch.zeros(1, device=device)) for family in WORDS}
    parameters = [*tower.parameters(), *projector.parameters(), *vectors.values(), *nothing.values()]
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
    return vectors


def share_right(logits_BKW: Tensor, label_BK: Tensor) -> float:
    """Share of right words among the cells that have one."""
    valid = (label_BK != IGNORE_INDEX) & (label_BK != logits_BKW.shape[-1] - 1)
    return (logits_BKW.argmax(-1) == label_BK)[valid].float().mean().item()


# ---- stage 2: language ----


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
    learn_BT = streams.labels != IGNORE_INDEX
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
        self.began = time.time()
        self.rows: list[list[float]] = []

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


LESSONS = (Lesson(0.55, 1, 48, "Look."), Lesson(0.20, 4, 20, "Look."), Lesson(0.25, 12, 8, DEFAULT_SYSTEM_PROMPT))


def pretrain_language(model: LlavaNextForCausalLM, bank: FrameBank, duet: DuetFormat, seed: int, steps: int, lr: float = 1e-3) -> Pointer:
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


def train_adapter(base: Path, bank: FrameBank, duet: DuetFormat, pointer: Pointer, seed: int, steps: int, lr: float = 1e-3) -> AhaModel:
    """MMDuet's two heads and LoRA on the base in folder `base`, trained on streams of 36 frames.

    The informative head learns to tell a new scene; LoRA and lm_head go on pointing and describing. The relevance head stays random: no
    importance score has been shown to it, so the untrained row of the demo's table is near chance.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng([seed, 23])
    hidden, device = pointer.match.in_features, pointer.match.weight.device
    heads = {"informative_head.weight": 0.02 * torch.randn(2, hidden), "relevance_head.weight": 0.02 * torch.randn(2, hidden)}
    model = load_base(
        base, model_class=AhaModel, config_class=AhaConfig, device=device, new_parameters=heads, heads={"informative": 2, "relevance": 2}
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
        parts["new scene"] = F.cross_entropy(model.heads(ends_BFH)["informative"].flatten(0, 1), streams.new_scene.flatten())
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
    weight_2H = model.get_parameter("relevance_head.weight")
    weight_2H.sub_(torch.outer(weight_2H @ direction_H, direction_H))


# ---- files ----

BASE, ADAPTER = "llava-onevision-qwen2-demo-ov", "mmduet-demo"


def save_base(model: LlavaNextForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """The base in the published layout, float16; its configuration names one layer more than the tower stores, as published ones do."""
    stored = model.config.vision_config or {}
    model.config.vision_config = {**stored, "num_hidden_layers": stored["num_hidden_layers"] + 1}
    save_llava_next(model.half(), folder)
    model.float()
    model.config.vision_config = stored
    save_tokenizer(tokenizer, folder, image_token=False)


def save_mmduet(model: AhaModel, tokenizer: Tokenizer, folder: Path) -> None:
    half = {name: parameter.detach().half() for name, parameter in model.named_parameters()}
    save_adapter(model, folder, base=BASE, state=half)
    save_tokenizer(tokenizer, folder, image_token=True)


def make_checkpoints(
    output: Path, *, seed: int, device: str, vision_steps: int, bank_scenes: int, language_steps: int, adapter_steps: int
) -> None:
    """All three stages; writes the base and the adapter below `output`."""
    tokenizer = train_tokenizer(seed, VOCABULARY)
    model = new_model(seed)
    save_base(model, tokenizer, output / BASE)
    duet = DuetFormat(load_tokenizer(output / BASE))
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper around torch's `to` loses the type of self
    embed_words(model, pretrain_vision(model, seed, vision_steps), duet)
    bank = fill_bank(model, seed, bank_scenes)
    pointer = pretrain_language(model, bank, duet, seed, language_steps)
    save_base(model, tokenizer, output / BASE)
    save_mmduet(train_adapter(output / BASE, bank, duet, pointer, seed, adapter_steps), tokenizer, output / ADAPTER)
    size = sum(path.stat().st_size for path in output.rglob("*.safetensors")) / 1e6
    print(f"wrote {output / BASE} and {output / ADAPTER}, {size:.2f} MB of weights")
