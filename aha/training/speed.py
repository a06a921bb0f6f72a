"""How fast a run is: step time, data wait, frames and tokens per second, model FLOP utilisation, memory."""

from __future__ import annotations

import time

import torch

from aha.models import AhaModel

# Dense bf16 peaks from the vendors' data sheets, in FLOP/s; by a part of the device's name.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "A6000": 155e12, "L40": 181e12, "4090": 165e12, "3090": 71e12}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU, None where it is not known (no MFU is reported then)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class ModelFlops:
    """Model FLOPs of one training sample: what the mathematics needs (forward, gradients of activations, gradients of trained weights);
    recomputation by gradient checkpointing does not count, so that MFU compares between settings."""

    def __init__(self, model: AhaModel):
        config, named = model.config, list(model.decoder_layers.named_parameters())
        decoder = sum(p.numel() for n, p in named if p.ndim == 2 and ".lora_" not in n)
        lora = sum(p.numel() for n, p in named if ".lora_" in n)
        self.per_token = 4 * decoder + 6 * lora
        # scores and weighted sum, causal half; twice that again backwards
        self.per_token2 = 3 * 2 * config.num_hidden_layers * config.hidden_size
        tower, projector = model.vision_flops()
        self.per_frame = tower + 3 * projector

    def __call__(self, batch: int, tokens: float, frames: int) -> float:
        return batch * (tokens * self.per_token + tokens**2 * self.per_token2) + frames * self.per_frame


class Speed:
    """Counts the work between two log lines."""

    def __init__(self, model: AhaModel):
        self.model_flops = ModelFlops(model)
        self.device = next(model.parameters()).device
        self.peak = peak_flops(self.device)
        self.last_step = 0
        self._restart()

    def _restart(self) -> None:
        self.begin = time.perf_counter()
        self.wait = self.frames = self.tokens = self.work = 0.0

    def restart(self, step: int) -> None:
        """Start counting at `step`, without what came before (loading, resuming, validation)."""
        self.last_step = step
        self._restart()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def worked(self, frames: float, tokens: float) -> None:
        """What all GPUs together worked through."""
        self.frames += frames
        self.tokens += tokens

    def flops(self, batch: int, tokens: int, frames: int) -> float:
        """Model FLOPs of `batch` samples with `tokens` tokens together, padding not counted (of lengths alike, which batches have)."""
        value = self.model_flops(batch, tokens / batch, frames)
        self.work += value
        return value

    def report(self, step: int) -> dict[str, float]:
        """Since the last report: seconds per optimizer step and of those waiting for data; per second over all GPUs; MFU of this one."""
        seconds = time.perf_counter() - self.begin
        steps = max(step - self.last_step, 1)
        values = {
            "step_time_s": seconds / steps, "data_wait_s": self.wait / steps, "frames_per_s": self.frames / seconds,
            "tokens_per_s": self.tokens / seconds, "tflops_per_s": self.work / seconds / 1e12,
        }  # fmt: skip
        if self.peak:
            values["mfu"] = self.work / seconds / self.peak
        if self.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.restart(step)
        return values
