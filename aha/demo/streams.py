"""Conversations for pretraining: a query, a stream of frames out of a bank, and what is true of them.

Shapes: B streams, T tokens, F frames of a stream, N pictures of the bank, K cells (49).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aha.conversation import DEFAULT_SYSTEM_PROMPT, IGNORE_INDEX, DuetFormat, Turn
from aha.demo.language import caption_of, name_of, query_for, random_target
from aha.demo.pictures import FrameBank


@dataclass
class Streams:
    """B conversations with F frames each, padded on the right to T tokens.

    input_ids, position_ids: [B, T]; frames: [B, F], index into the bank; frame_ends: [B, F], position of each frame's last token; labels:
    [B, T], next-token targets or none; match: float [B, F], 1 where what the query asks for is seen; cells: float [B, F, K], share of
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
    bank: FrameBank,
    duet: DuetFormat,
    random: np.random.Generator,
    count: int,
    num_frames: int,
    longest_gap: int,
    system: str = DEFAULT_SYSTEM_PROMPT,
    plain: bool = False,
) -> Streams:
    """Random queries over random frames. Half of the streams begin up to `longest_gap` positions after their query, as if the video had
    been running for a while: so short streams teach attention over long distances. `plain` queries are names alone."""
    frames, match, cells, changes, rendered = [], [], [], [], []
    for _ in range(count):
        scene = bank.scenes[int(random.integers(len(bank.scenes)))]
        thing = scene.things[int(random.integers(len(scene.things)))] if scene.things else None
        target = random_target(random, thing, scene.place)
        hit = bank.matches(target)
        chosen, change = draw_runs(np.asarray(hit.any(1)), random, num_frames)
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
    input_ids, labels = torch.full((count, length), duet.pad_id), torch.full((count, length), IGNORE_INDEX)
    position_ids = torch.arange(length).repeat(count, 1)
    for b, r in enumerate(rendered):
        ids, learn = torch.tensor(r.input_ids), torch.tensor(r.learn_mask)
        input_ids[b, : len(ids)] = ids
        labels[b, : len(ids) - 1] = torch.where(learn[1:], ids[1:], IGNORE_INDEX)
        if random.uniform() < 0.5:
            position_ids[b, r.image_token_positions[0] :] += int(random.integers(longest_gap + 1))
    return Streams(
        input_ids, position_ids, torch.tensor(np.stack(frames)), torch.tensor([r.frame_token_positions for r in rendered]), labels,
        torch.tensor(np.stack(match)).float(), torch.tensor(np.stack(cells)).float(), torch.tensor(np.stack(changes)).long(),
    )  # fmt: skip


def draw_runs(hit_N: np.ndarray, random: np.random.Generator, num_frames: int, longest: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a stream [num_frames], in runs that show one scene, and 1 where a run begins; half of the runs show what is asked for."""
    inside = np.flatnonzero(hit_N)
    chosen: list[int] = []
    change: list[int] = []
    while len(chosen) < num_frames:
        pick = int(random.choice(inside)) if len(inside) and random.uniform() < 0.4 else int(random.integers(len(hit_N)))
        run = min(int(random.integers(1, longest + 1)), num_frames - len(chosen))
        chosen += [pick ^ (i % 2) for i in range(run)]
        change += [1] + [0] * (run - 1)
    return np.array(chosen), np.array(change)
