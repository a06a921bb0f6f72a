"""Two settings of the training step from one seed, on the same samples: in which step, and at which tensor, do they part?

    python benchmarks/compare_numerics.py --verdict   # a GPU, 7B, 20 steps in bfloat16: is fast accepted?
    python benchmarks/compare_numerics.py --first plain --second fast
    python benchmarks/compare_numerics.py --first plain --second recompute=0 --tolerance 1e-2
    python benchmarks/compare_numerics.py --size tiny --device cpu --dtype float32 --first plain --second compile=False,recompute=0

A setting is `plain` (PEFT's layers, transformers' recomputation of all layers, an attention mask, logits at every position, float32 master
weights), `fast` (the trainer's: compiled, 16-bit AdamW state, logits at labels), or a list of changes to `fast`: compile=True|False,
recompute=N layers (compiled ones), optimizer=low_memory|adamw; or a change to `plain`: `kernels` (the same mathematics by other kernels:
another one for attention, the tower in batches of 16 frames) or `float32` (the same weights and samples in float32). Dropout is off.
Compared are, in the order in which a step makes them: the frame tokens and each decoder layer's output (of the step's first sample), the
loss, each gradient, and each trained weight after the step, by about 4,096 values spread over the tensor. Prints the loss of both for every
step, the first tensor that differs by more than --tolerance of its norm (default: at all), the largest difference of each kind, and one
JSON line.

--verdict runs plain, plain again, plain by other kernels, plain in float32 and --second on the same model, one after the other, and prints
what the rule says: a speed-up is accepted where, against plain, the first two losses differ by at most 1e-3, the median of 20 by at most
1e-2, and the largest by no more than those of two plain runs. The distances from float32 say which of the two rounds less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from llava_next import TOWER_BATCH
from load_checkpoint import SIZES
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_step import Sample, random_model

from aha.errors import UserError, run_command
from aha.models import AhaModel
from aha.training.compiled import compile_layers
from aha.training.optimizer import LowMemoryAdamW
from aha.training.recompute import Cost, Recompute

VALUES = 4096  # of a tensor
FIRST_TWO, MEDIAN = 1e-3, 1e-2  # relative differences of losses that the rule allows
# what remains for attention without the kernels that torch prefers: one on a GPU, the other on a CPU
OTHER_KERNELS, OTHER_TOWER_BATCH = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], 16

Steps = list[dict[str, Tensor]]  # of a run: values of every tensor, by name in the order in which it is made, for each step


@dataclass(frozen=True)
class Setting:
    plain: bool = False
    compile: bool = True
    recompute: int = 0
    optimizer: str = "low_memory"
    other_kernels: bool = False
    float32: bool = False


def setting(text: str) -> Setting:
    """`plain`, `fast`, or changes to one of them. Raises UserError."""
    if text in ("plain", "kernels", "float32"):
        return Setting(plain=True, compile=False, optimizer="adamw", other_kernels=text == "kernels", float32=text == "float32")
    if text == "fast":
        return Setting()
    changes: dict[str, bool | int | str] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name == "compile" and value in ("True", "False"):
            changes[name] = value == "True"
        elif name == "recompute" and value.isdigit():
            changes[name] = int(value)
        elif name == "optimizer" and value in ("low_memory", "adamw"):
            changes[name] = value
        else:
            raise UserError(
                f"setting {part!r} is not known; use plain, kernels, float32, fast, compile=, recompute= or optimizer= (see --help)."
            )
    return replace(Setting(), **changes)


def some_values(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(flat.numel() // VALUES, 1)].double().cpu()


class Masters:
    """Float32 copies of 16-bit weights with torch's AdamW, as in plain mixed precision."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.masters = [nn.Parameter(p.detach().float()) for p in parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=2e-5, weight_decay=0.0)

    @torch.no_grad()
    def step(self) -> None:
        for master, parameter in zip(self.masters, self.parameters):
            master.grad = parameter.grad.float()
        self.optimizer.step()
        for master, parameter in zip(self.masters, self.parameters):
            parameter.copy_(master)


def trained(model: AhaModel) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def as_chosen(model: AhaModel, chosen: Setting) -> Iterator[None]:
    """The model's dtype, kernels and layers for a setting; only `compile` cannot be taken back afterwards."""
    before = {p: p.dtype for p in model.parameters()}
    with contextlib.ExitStack() as stack:
        if chosen.float32:
            for parameter in before:
                parameter.data = parameter.data.float()
            stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
        if chosen.other_kernels:
            stack.enter_context(sdpa_kernel(OTHER_KERNELS))
        if chosen.compile:
            compile_layers(model)
            Recompute(model, chosen.recompute, Cost.estimate(model.config, True, 2))
        elif chosen.plain or chosen.recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        yield
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()
    for parameter, dtype in before.items():
        parameter.data = parameter.data.to(dtype)


def run(chosen: Setting, args: argparse.Namespace, model: AhaModel, device: torch.device) -> Steps:
    with as_chosen(model, chosen):
        return train(chosen, args, model, device)


def train(chosen: Setting, args: argparse.Namespace, model: AhaModel, device: torch.device) -> Steps:
    named = trained(model)
    parameters = list(named.values())
    if chosen.plain and not chosen.float32:
        optimizer = Masters(parameters)
    elif chosen.optimizer == "low_memory":
        optimizer = LowMemoryAdamW(parameters, lr=2e-5)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0)
    seen: dict[str, Tensor] = {}

    frame_tokens: list[Tensor] = []  # of a sample, a piece for each batch of the tower

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            if not seen:  # the first layer of the first sample: its frames have gone through
                seen["output of mm_projector"] = some_values(torch.cat(frame_tokens))
            seen.setdefault(f"output of {name}", some_values(output[0] if isinstance(output, tuple) else output))  # not its recomputation

        return hook

    hooks = [layer.register_forward_hook(keep(f"layer {i}")) for i, layer in enumerate(model.decoder_layers)]
    hooks.append(model.model.mm_projector[2].register_forward_hook(lambda module, inputs, output: frame_tokens.append(output.detach())))
    tower_batch = OTHER_TOWER_BATCH if chosen.other_kernels else TOWER_BATCH
    steps = []
    for step in range(args.steps):
        seen.clear()
        losses = []
        for k in range(args.samples):
            frame_tokens.clear()
            loss = Sample(model, args.frames, step * args.samples + k, device).loss(model, plain=chosen.plain, tower_batch=tower_batch)
            (loss / args.samples).backward()
            losses.append(loss.detach().double().cpu())
        seen["loss"] = torch.stack(losses).mean().flatten()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        seen |= {f"gradient of {name}": some_values(named[name].grad) for name in reversed(named)}
        optimizer.step()
        seen |= {f"weight {name}": some_values(parameter) for name, parameter in named.items()}
        for parameter in parameters:
            parameter.grad = None
        steps.append(dict(seen))
    for hook in hooks:
        hook.remove()
    return steps


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the first; both zero: 0."""
    distance = (a - b).norm().item()
    return distance / max(a.norm().item(), 1e-30) if distance else 0.0


def parting(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]], tolerance: float) -> tuple[int, str, float] | None:
    """(step from 1, tensor, relative difference) where two runs part first by more than `tolerance`; None if they never do."""
    for number, (a, b) in enumerate(zip(first, second), 1):
        for name, value in a.items():
            if (apart := difference(value, b[name])) > tolerance:
                return number, name, apart
    return None


def largest(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> dict[str, float]:
    """The largest difference of each kind of tensor over all steps."""
    found: dict[str, float] = {}
    for a, b in zip(first, second):
        for name, value in a.items():
            kind = name.split(" ")[0]
            found[kind] = max(found.get(kind, 0.0), difference(value, b[name]))
    return found


# ---- the verdict ----


@dataclass(frozen=True)
class Distance:
    """Relative differences of the losses of two runs: of the first two steps, and the median and the largest of all."""

    first_two: tuple[float, ...]
    median: float
    largest: float

    @classmethod
    def between(cls, first: Steps, second: Steps) -> Distance:
        apart = [difference(a["loss"], b["loss"]) for a, b in zip(first, second)]
        return cls(tuple(apart[:2]), statistics.median(apart), max(apart))

    def line(self, what: str) -> str:
        return (
            f"{what:34s} first two {', '.join(f'{d:.1e}' for d in self.first_two):18s} median {self.median:.1e}  largest {self.largest:.1e}"
        )


def rule(candidate: Distance, plain: list[Distance]) -> list[tuple[str, bool]]:
    """What the rule says of a candidate's distance from plain, line by line; `plain`: the distances of two plain runs."""
    allowed = max(d.largest for d in plain)
    return [
        (f"first two losses within {FIRST_TWO:g}: {max(candidate.first_two):.1e}", max(candidate.first_two) <= FIRST_TWO),
        (f"median within {MEDIAN:g}: {candidate.median:.1e}", candidate.median <= MEDIAN),
        (f"largest no larger than between two plain runs, {allowed:.1e}: {candidate.largest:.1e}", candidate.largest <= allowed),
    ]


def verdict(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict:
    """Run everything on one model, print what the rule says, and give the figures. `args.second` comes last: it may compile."""
    model = random_model(args.size, device, dtype, 0, 0.0)
    start = {name: p.detach().clone() for name, p in trained(model).items()}
    runs: dict[str, Steps] = {}
    for name, text in (("plain", "plain"), ("again", "plain"), ("kernels", "kernels"), ("float32", "float32"), ("second", args.second)):
        begin = time.perf_counter()
        for parameter, values in zip(trained(model).values(), start.values()):
            parameter.data.copy_(values)
        steps = run(setting(text), args, model, device)
        runs[name] = [{what: value for what, value in step.items() if what.startswith(("output", "loss"))} for step in steps]
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of float32 there is twice as much
        losses = " ".join(f"{step['loss'].item():.5f}" for step in runs[name][:4])
        print(f"{text if name != 'again' else 'plain again':34s} {time.perf_counter() - begin:6.1f} s   losses {losses} ...", flush=True)
    distances = {
        "plain against itself": Distance.between(runs["plain"], runs["again"]),
        "plain against other kernels": Distance.between(runs["plain"], runs["kernels"]),
        f"{args.second} against plain": (candidate := Distance.between(runs["plain"], runs["second"])),
        "plain against float32": (plain := Distance.between(runs["float32"], runs["plain"])),
        "other kernels against float32": Distance.between(runs["float32"], runs["kernels"]),
        f"{args.second} against float32": (second := Distance.between(runs["float32"], runs["second"])),
    }
    for what, distance in distances.items():
        print(distance.line(what))
    exact, first, other = (runs[name][0] for name in ("float32", "plain", "second"))
    tensors = {name: (difference(exact[name], first[name]), difference(exact[name], other[name])) for name in exact if "output" in name}
    for name in ("output of mm_projector", f"output of layer {len(tensors) - 2}"):
        print(f"step 1, {name}: from float32 plain {tensors[name][0]:.2e}, {args.second} {tensors[name][1]:.2e}")
    lines = rule(candidate, list(distances.values())[:2])
    for line, kept in lines:
        print(f"{line}: {'yes' if kept else 'NO'}")
    accepted = all(kept for _, kept in lines)
    farther = {
        "losses": second.median / max(plain.median, 1e-30),
        "outputs": sum(b for _, b in tensors.values()) / max(sum(a for a, _ in tensors.values()), 1e-30),
    }
    times = f"{farther['losses']:.2f} times (median loss), {farther['outputs']:.2f} times (outputs)"
    print(f"{args.second} is as far from float32 as plain: {times}")
    print(f"accepted by the rule: {'yes' if accepted else 'NO'}")
    return {
        "distances": {what: vars(distance) for what, distance in distances.items()}, "rule": dict(lines), "accepted": accepted,
        "times_as_far_from_float32": farther, "step_1_from_float32": tensors,
    }  # fmt: skip


# ---- two settings ----


def compare(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict:
    first, second = (run(setting(text), args, random_model(args.size, device, dtype, 0, 0.0), device) for text in (args.first, args.second))
    for number, (a, b) in enumerate(zip(first, second), 1):
        apart = difference(a["loss"], b["loss"])
        print(f"step {number:3d}   {args.first} {a['loss'].item():.6f}   {args.second} {b['loss'].item():.6f}  relative {apart:.1e}")
    parts, kinds, losses = parting(first, second, args.tolerance), largest(first, second), Distance.between(first, second)
    if parts is None:
        print(f"they do not part in {args.steps} steps (tolerance {args.tolerance:g})")
    else:
        print(f"they part in step {parts[0]} at {parts[1]}: relative difference {parts[2]:.1e}")
    print("largest differences: " + ", ".join(f"{kind} {value:.1e}" for kind, value in kinds.items()))
    return {
        "first": args.first, "parting": parts, "largest": kinds, "loss_first_two": max(losses.first_two), "loss_median": losses.median,
        "loss_largest": losses.largest,
    }  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("compare_numerics.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdict", action="store_true", help="whether --second is accepted in place of plain")
    parser.add_argument("--first", default="plain", help="a setting (default %(default)s)")
    parser.add_argument("--second", default="fast", help="a setting (default %(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative difference that counts (default: any)")
    parser.add_argument("--size", default="7b", choices=SIZES, help="model dimensions (default %(default)s)")
    parser.add_argument("--frames", type=int, default=60, help="frames of a sample (default %(default)s)")
    parser.add_argument("--samples", type=int, default=1, help="samples of an optimizer step, whose mean loss counts (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of weights (default %(default)s)")
    args = parser.parse_args(argv)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    facts = verdict(args, device, dtype) if args.verdict else compare(args, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({
        "benchmark": "compare_numerics", "device": name, "torch": torch.__version__, "second": args.second, "size": args.size,
        "frames": args.frames, "dtype": args.dtype, "samples": args.samples, "steps": args.steps, **facts,
    }))  # fmt: skip


if __name__ == "__main__":
    run_command(main)
