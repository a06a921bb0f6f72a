"""Our model against the golden numbers of the public MMDuet and Aha code: `python test/golden.py` prints the table.

Exit code 1 where a difference is over its tolerance. Runs from any folder, with the packages of requirements.txt and nothing else.

Each function returns rows (item, largest difference, tolerance); test_golden.py asserts them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from paths import shared_fixture
from PIL import Image
from transformers.cache_utils import DynamicCache

from aha.models import AhaModel, aha_losses, mmduet_losses
from aha.models.adapters import trainable

FAMILIES = ("mmduet", "aha")
Row = tuple[str, float, float]


def folder() -> Path:
    return shared_fixture("reference")


def load_json(name: str):
    return json.loads((folder() / name).read_text())


@cache
def model(family: str, attention: str = "sdpa", merge: bool = True) -> AhaModel:
    return AhaModel.from_base(
        folder() / "llava-onevision-qwen2-tiny-ov", folder() / f"{family}-adapter", attn_implementation=attention, merge=merge
    )


def frame(name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(folder() / "frames" / f"{name}.png"))).permute(2, 0, 1)[None]


def worst(a, b) -> float:
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max())


def vision(family: str, attention: str) -> Iterator[Row]:
    """Tower, projector and pooling on the lossless frames; pixel probes of frame 0."""
    with torch.no_grad():
        m, frame0 = model(family, attention), frame("landscape_fps1_frame0")
        for probe in load_json(f"{family}/vision.json")["landscape.mp4"]["pixel_values"]["values"]:
            if probe["frame"] == 0:
                got = m.pixel_values(frame0)[0, probe["c"], probe["y"], probe["x"]]
                yield f"{family} {attention} pixel value", abs(float(got) - probe["value"]), 1e-4
        yield (
            f"{family} {attention} tower",
            worst(m.tower_features(frame0)[0], np.load(folder() / family / "tower_frame0_landscape.npy")),
            1e-4,
        )
        for name in ("landscape_fps1_frame0", "landscape_fps1_frame10", "landscape_fps1_frame19"):
            golden = np.load(folder() / family / "embeds_landscape_fps1.npy")[int(name.split("frame")[-1])]
            yield f"{family} {attention} frame tokens", worst(m.visual_embed(frame(name))[0], golden), 1e-4


def scores(family: str, attention: str) -> Iterator[Row]:
    """Every session of scores.json, fed call by call as recorded, from the stored frame tokens."""
    m = model(family, attention)
    for name, session in load_json(f"{family}/scores.json")["sessions"].items():
        embeds = torch.from_numpy(np.load(folder() / family / f"embeds_{session['video'][:-4]}_fps{session['fps']}.npy"))
        kv, got = DynamicCache(), []
        with torch.no_grad():
            for call in session["forward_calls"]:
                embedded = m.embed_tokens(torch.tensor([call["ids"]], dtype=torch.long))
                if "frame" in call:
                    embedded = torch.cat([embedded, embeds[call["frame"]][None]], 1)
                hidden = m.decode(embedded, past_key_values=kv)
                if "frame" in call:
                    got.append([float(value) for value in m.score(hidden[0, -1:]) if value is not None])
        keys = ("informative_score", "relevance_score", "uncertainty_score")[: len(got[0])]
        yield f"{family} {attention} scores {name}", worst(np.array(got).T, [session[key] for key in keys]), 1e-4


def training(family: str, case: str, frames: torch.Tensor) -> Iterator[Row]:
    """Losses and gradient norms of one golden batch, dropout 0. `frames`: its frames, uint8 [F, 3, 384, 384].

    Where there is no language label the reference learns the second token at position 0 (a defect); the same is done here, to compare the rest.
    Aha's gradients hold its defective parts and are not compared.
    """
    golden = load_json(f"{family}/training.json")[case]
    golden = golden["forward"] if family == "aha" else golden["forward_labels_renamed (intended)"]
    m = AhaModel.from_base(folder() / "llava-onevision-qwen2-tiny-ov", folder() / f"{family}-adapter", merge=False)
    heads = [h for h in ("informative_head", "relevance_head", "uncertainty_head") if getattr(m, h) is not None]
    trainable(m, ["mm_projector", "lm_head", *heads])
    with np.load(folder() / family / f"batch_{case}.npz") as stored:
        batch = {key: torch.from_numpy(stored[key]) for key in stored}
    labels = batch["labels"].clone()
    if not (labels != -100).any():
        labels[0, 0] = batch["input_ids"][0, 1]
    output = m.eval()(batch["input_ids"], frames=frames, attention_mask=batch["attention_mask"], logits_mask=labels != -100)
    losses = (aha_losses if family == "aha" else mmduet_losses)(output, labels, batch["informative_labels"], batch["relevance_labels"])
    part = {name: float(value.detach()) for name, value in losses.parts.items()}

    def relative(item: str, got: float, want: float, tolerance: float = 1e-4) -> Row:
        return f"{family} {case} {item} (relative)", abs(got - want) / max(abs(want), 1e-9), tolerance

    yield relative("lm loss", part["lm"], golden["lm_loss"])
    if family == "mmduet":
        yield relative("loss", float(losses.total.detach()), golden["loss"])
        losses.total.backward()
        for name, want in golden["grad_norm_params"].items():
            parameter = m.get_parameter(name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."))
            got = 0.0 if parameter.grad is None else float(parameter.grad.norm())
            yield f"{family} {case} gradient norms (relative)", abs(got - want) / max(want, 1e-3), 1e-3
        return
    raw = golden["unweighted"]
    if raw["info_loss"] is not None and (batch["informative_labels"] != -100).any():
        yield relative("informative loss", part["informative"], raw["info_loss"])
    if raw["ref_loss"] is not None:
        yield relative("relevance loss", part["relevance"], raw["ref_loss"])
        valid = batch["relevance_labels"][output.batch_N, output.position_N] != -100
        yield f"aha {case} relevance at labels", worst(output.scores().relevance.detach()[valid], golden["relevance_at_labels"]), 1e-4
        yield f"aha {case} log-variance at labels", worst(output.log_variance_N.detach()[valid], golden["log_variance_at_labels"]), 1e-4


def batch_frames(case: str, family: str) -> torch.Tensor:
    """The frames of a golden batch, read from the fixture videos the way the reference's training loader reads them."""
    from aha.video.reader import read_video

    golden = load_json(f"{family}/training.json")[case]
    video = "portrait" if case == "magqa" else "landscape"
    first = 2 if case == "magqa" else 0  # the annotation's video_start_time, at 1 frame a second
    frames = read_video(folder() / f"videos/{video}.mp4", fps=golden["frame_fps"], sampling="reference", rounding="down").frames_TCHW
    return torch.from_numpy(frames[first : first + golden["num_frames"]])


def cases() -> list[tuple[str, str]]:
    return [(family, case) for family in FAMILIES for case in load_json(f"{family}/training.json")]


def head_conversion() -> Iterator[Row]:
    """MMDuet's relevance before and after `to_aha`, on the frames of every stored embedding."""
    m = AhaModel.from_base(folder() / "llava-onevision-qwen2-tiny-ov", folder() / "mmduet-adapter")
    hidden = torch.randn(4096, m.config.hidden_size, generator=torch.Generator().manual_seed(0)) * 4
    with torch.no_grad():
        before = m.score(hidden).relevance
        after = m.to_aha().score(hidden)
    yield "head conversion: MMDuet relevance = converted Aha relevance", worst(before, after.relevance), 1e-5
    yield "head conversion: variance at the start is 1", worst(after.uncertainty, np.ones(4096)), 0.0


def merged() -> Iterator[Row]:
    for family in FAMILIES:
        plain, folded = model(family, merge=False), model(family)
        ids = torch.randint(0, 1000, (1, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            a, b = (m.decode(m.embed_tokens(ids)) for m in (plain.eval(), folded))
        yield f"{family} adapter merged = unmerged (hidden states)", worst(a, b), 1e-4


def every_row() -> Iterator[Row]:
    for family in FAMILIES:
        for attention in ("sdpa", "eager"):
            yield from vision(family, attention)
            yield from scores(family, attention)
    for family, case in cases():
        yield from training(family, case, batch_frames(case, family))
    yield from head_conversion()
    yield from merged()


def main() -> None:
    torch.set_num_threads(1)
    table: dict[str, tuple[float, float, int]] = {}
    for item, difference, tolerance in every_row():
        largest, _, count = table.get(item, (0.0, tolerance, 0))
        table[item] = (max(largest, difference), tolerance, count + 1)
    print(f"{'item':70} {'largest difference':>18} {'tolerance':>10} {'values':>7}")
    for item, (difference, tolerance, count) in table.items():
        print(f"{item:70} {difference:18.2e} {tolerance:10.0e} {count:7d}{'' if difference <= tolerance else '  OVER'}")
    if any(not difference <= tolerance for difference, tolerance, _ in table.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
