"""Two settings of the training step from one seed, on the same samples: in which step, and at which tensor, do they part?

    python benchmarks/compare_numerics.py --first plain --second fast                              # a GPU, 7B, 20 steps in bfloat16
    python benchmarks/compare_numerics.py --first plain --second recompute=0 --tolerance 1e-2
    python benchmarks/compare_numerics.py --size tiny --device cpu --dtype float32 --first plain --second compile=False,recompute=0

A setting is `plain` (PEFT's layers, transformers' recomputation of all layers, an attention mask, logits at every position, float32 master
weights), `fast` (the trainer's: compiled, 16-bit AdamW state, logits at labels), or a list of changes to `fast`: compile=True|False,
recompute=N layers (compiled ones), optimizer=low_memory|adamw. Dropout is off. Compared are, in the order in which a step makes
them: the frame tokens and each decoder layer's output (of the step's first sample), the loss, each gradient, and each trained weight
after the step, by about 4,096 values spread over the tensor. Prints the loss of both for every step, the first tensor that differs by
more than --tolerance of its norm (default: at all), the largest difference of each kind, and one JSON line. A speed-up is accepted where
the first two losses differ by at most 1e-3 and the median of 20 by at most 1e-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace

import torch
from load_checkpoint import SIZES
from torch import Tensor, nn
from train_step import Sample, random_model

from aha.errors import UserError, run_command
from aha.models import AhaModel
from aha.training.compiled import compile_layers
from aha.training.optimizer import LowMemoryAdamW
from aha.training.recompute import Cost, Recompute

VALUES = 4096  # of a tensor


@dataclass(frozen=True)
class Setting:
    plain: bool = False
    compile: bool = True
    recompute: int = 0
    optimizer: str = "low_memory"


def setting(text: str) -> Setting:
    """`plain`, `fast`, or changes to `fast`. Raises UserError."""
    if text in ("plain", "fast"):
        return Setting(plain=text == "plain", compile=text == "fast")
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
            raise UserError(f"setting {part!r} is not known; use plain, fast, compile=, recompute= or optimizer= (see --help).")
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


def run(chosen: Setting, args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Values of every tensor, by name in the order in which it is made, for each step."""
    model: AhaModel = random_model(args.size, device, dtype, 0, 0.0)
    if chosen.compile:
        compile_layers(model)
        Recompute(model, chosen.recompute, Cost.estimate(model.config, True, 2))
    elif chosen.plain or chosen.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    if chosen.plain:
        optimizer = Masters(parameters)
    elif chosen.optimizer == "low_memory":
        optimizer = LowMemoryAdamW(parameters, lr=2e-5)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.0)
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            seen.setdefault(f"output of {name}", some_values(output[0] if isinstance(output, tuple) else output))  # not its recomputation

        return hook

    model.model.mm_projector[2].register_forward_hook(keep("mm_projector"))
    for i, layer in enumerate(model.decoder_layers):
        layer.register_forward_hook(keep(f"layer {i}"))
    steps = []
    for step in range(args.steps):
        seen.clear()
        losses = []
        for k in range(args.samples):
            loss = Sample(model, args.frames, step * args.samples + k, device).loss(model, plain=chosen.plain)
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


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("compare_numerics.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    first, second = (run(setting(text), args, device, dtype) for text in (args.first, args.second))
    differences = []
    for number, (a, b) in enumerate(zip(first, second), 1):
        differences.append(difference(a["loss"], b["loss"]))
        print(
            f"step {number:3d}   {args.first} {a['loss'].item():.6f}   {args.second} {b['loss'].item():.6f}  relative {differences[-1]:.1e}"
        )
    apart, kinds = parting(first, second, args.tolerance), largest(first, second)
    if apart is None:
        print(f"they do not part in {args.steps} steps (tolerance {args.tolerance:g})")
    else:
        print(f"they part in step {apart[0]} at {apart[1]}: relative difference {apart[2]:.1e}")
    print("largest differences: " + ", ".join(f"{kind} {value:.1e}" for kind, value in kinds.items()))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({
        "benchmark": "compare_numerics", "device": name, "torch": torch.__version__, "first": args.first, "second": args.second,
        "size": args.size, "dtype": args.dtype, "samples": args.samples, "parting": apart, "largest": kinds,
        "loss_first_two": max(differences[:2]),
        "loss_median": statistics.median(differences), "loss_largest": max(differences),
    }))  # fmt: skip


if __name__ == "__main__":
    run_command(main)
