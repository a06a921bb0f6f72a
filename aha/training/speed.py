"""How fast a run is: step time and where it goes, frames and tokens per second, FLOP utilisation, memory."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aha.models import AhaModel

# Dense bf16 peaks from the vendors' data sheets, in FLOP/s; by a part of the device's name.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "A6000": 155e12, "L40": 181e12, "4090": 165e12, "3090": 71e12}
SECTIONS = ("vision", "decoder", "loss", "optimizer", "communication", "data")


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU, None where it is not known (no MFU is reported then)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class ModelFlops:
    """Model FLOPs of one training sample: what the mathematics needs (forward, gradients of activations, gradients of trained weights);
    recomputation by gradient checkpointing does not count, so that MFU compares between settings. `again`: what recomputation adds."""

    def __init__(self, model: AhaModel):
        config, layers = model.config, model.decoder_layers
        named = [parameter for layer in layers for parameter in layer.named_parameters()]
        packed = [b for layer in layers for n, b in layer.named_buffers() if n.endswith(".packed")]
        decoder = sum(p.numel() for n, p in named if p.ndim == 2 and ".lora_" not in n)
        decoder += sum(b.numel() * 2 for b in packed)  # 4-bit, two in a byte
        lora = sum(p.numel() for n, p in named if ".lora_" in n)
        self.layers = config.num_hidden_layers
        self.per_token = 4 * decoder + 6 * lora
        self.again_per_token = 2 * (decoder + lora) / self.layers
        # scores and weighted sum, causal half; twice that again backwards
        self.per_token2 = 3 * 2 * config.num_hidden_layers * config.hidden_size
        self.tower_per_frame, projector = model.vision_flops()
        self.projector_per_frame = 3 * projector

    def __call__(self, batch: int, tokens: float, frames: int, tower: bool = True) -> float:
        """`batch` samples of `tokens` tokens each, `frames` frames together. tower: features are computed, not read from a cache."""
        per_frame = self.projector_per_frame + (self.tower_per_frame if tower else 0)
        return batch * (tokens * self.per_token + tokens**2 * self.per_token2) + frames * per_frame

    def again(self, batch: int, tokens: float, layers: int) -> float:
        """FLOPs that recomputing `layers` decoder layers adds."""
        return layers * batch * (tokens * self.again_per_token + tokens**2 * self.per_token2 / 3 / self.layers)


class Sections:
    """Seconds that each part of a step took, by marks on the GPU's own clock that are read later: nothing waits for them.

    A section inside another one (vision in the decoder's forward pass) is not counted twice.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.open: list[str] = []
        self.marks: list[tuple[str | None, Any]] = []  # from this mark on, this section

    def mark(self, section: str | None) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((section, event))
        else:
            self.marks.append((section, time.perf_counter()))

    @contextlib.contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.begin(section)
        try:
            yield
        finally:
            self.end()

    def begin(self, section: str) -> None:
        self.open.append(section)
        self.mark(section)

    def end(self) -> None:
        self.open.pop()
        self.mark(self.open[-1] if self.open else None)

    def collect(self) -> dict[str, float]:
        """Seconds of each section since the last call. Waits for the GPU to reach the last mark."""
        if self.on_gpu and self.marks:
            self.marks[-1][1].synchronize()
        for (section, begin), (_, end) in zip(self.marks, self.marks[1:]):
            if section is not None:
                self.seconds[section] += begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin
        self.marks = self.marks[-1:] if self.open else []
        seconds, self.seconds = self.seconds, dict.fromkeys(SECTIONS, 0.0)
        return seconds

    def around(self, section: str, function: Callable) -> Callable:
        """`function` with its time counted as `section`."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self(section):
                return function(*args, **kwargs)

        return timed


class Speed:
    """Counts the work between two log lines, and the whole run's."""

    def __init__(self, model: AhaModel):
        self.model_flops = ModelFlops(model)
        self.device = model.decoder_device
        self.peak = peak_flops(self.device)
        self.sections = Sections(self.device)
        vars(model)["tower_features"] = self.sections.around("vision", model.tower_features)  # of this model alone
        self.last_step = 0
        self.total = dict.fromkeys((*SECTIONS, "all"), 0.0)
        self.total_work = self.total_busiest = 0.0
        self.steps = 0
        self._restart()

    def _restart(self) -> None:
        self.sections.collect()
        self.begin = time.perf_counter()
        self.wait = self.frames = self.tokens = self.work = self.again = self.busiest = self.new_shapes = 0.0

    def restart(self, step: int) -> None:
        """Start counting at `step`, without what came before (loading, resuming, validation, saving)."""
        self.last_step = step
        self._restart()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def worked(self, *, frames: float, tokens: float, work: float, again: float, busiest: float, new_shapes: float) -> None:
        """An optimizer step. What all GPUs together worked through; FLOPs of one, on average, and of the one that had most (`again` among
        them); how many batches had a shape that a GPU had not seen, on the GPU with most of them."""
        self.frames += frames
        self.tokens += tokens
        self.work += work
        self.again += again
        self.busiest += busiest
        self.new_shapes += new_shapes

    def report(self, step: int, peak_bytes: float) -> dict[str, float]:
        """Since the last report: seconds per optimizer step and where they went; per second over all GPUs; utilisation of one on average
        (`mfu` counts what the mathematics needs, `hfu` recomputation as well); by what share the GPU with most work had more than the mean
        (`imbalance`); batches of new shapes, for which cuDNN has to get ready. peak_bytes: of GPU memory, this rank's."""
        sections = self.sections.collect()
        seconds = time.perf_counter() - self.begin
        steps = max(step - self.last_step, 1)
        sections["data"] = self.wait
        values = {
            "step_time_s": seconds / steps, "data_wait_s": self.wait / steps, "frames_per_s": self.frames / seconds,
            "tokens_per_s": self.tokens / seconds, "tflops_per_s": self.work / seconds / 1e12,
            "imbalance": excess(self.busiest, self.work + self.again), "new_shapes": self.new_shapes / steps,
        }  # fmt: skip
        if self.peak:
            values["mfu"] = self.work / seconds / self.peak
            values["hfu"] = (self.work + self.again) / seconds / self.peak
        if self.device.type == "cuda":
            values["memory_gib"] = max(peak_bytes, torch.cuda.max_memory_allocated(self.device)) / 2**30
            values["memory_reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / 2**30
        values |= {f"time_{name}_s": sections[name] / steps for name in SECTIONS if name != "data"}
        if self.last_step > 0:  # the first step compiles and starts the readers
            self.steps += steps
            self.total["all"] += seconds
            self.total_work += self.work + self.again
            self.total_busiest += self.busiest
            for name, value in sections.items():
                self.total[name] += value
        self.restart(step)
        return values

    def summary(self) -> dict[str, float]:
        """Seconds of an optimizer step on average over the run (without its first one): of each section, "other", and "all"."""
        if not self.steps:
            return {}
        parts = {name: self.total[name] / self.steps for name in SECTIONS}
        whole = self.total["all"] / self.steps
        return {**parts, "other": max(whole - sum(parts.values()), 0.0), "all": whole}

    def imbalance(self) -> float:
        """Over the steps of `summary`: by what share the GPU with most work had more than the mean, on average."""
        return excess(self.total_busiest, self.total_work)


def excess(busiest: float, mean: float) -> float:
    return max(busiest / mean - 1, 0.0) if mean else 0.0


def summary_line(parts: dict[str, float], imbalance: float = 0.0) -> str:
    names = {"data": "waiting for data"}
    whole = parts["all"]
    shares = [f"{names.get(name, name)} {value:.3f} s ({value / whole:.0%})" for name, value in parts.items() if name != "all"]
    uneven = f"; the busiest of the GPUs had {imbalance:.1%} more to compute than the mean" if imbalance else ""
    return f"an optimizer step took {whole:.3f} s: {', '.join(shares)}{uneven}"
