"""AdamW whose state takes 4 to 6 bytes a parameter instead of 12: for full-size training on one small card.

Plain mixed precision keeps a float32 master copy and two float32 moments beside every 16-bit weight. With `lm_head` trained (545M of 602M
trained parameters at 7B) that is 6.7 GiB. Here:

- both moments are bfloat16. The second one changes by a thousandth per step, less than bfloat16 resolves (1/256), so it is rounded
  up or down at random in proportion (stochastic rounding): right on average, where nearest rounding would stand still;
- a bfloat16 weight has a bfloat16 remainder beside it, what its rounding left over (Kahan summation): together 16 bits of mantissa,
  enough for steps of 2e-5. A float32 weight (such as ZeRO's master copy) needs none.

The arithmetic itself is float32, in pieces of `CHUNK` elements; on a GPU each piece is one fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1 << 25


def stochastic_bfloat16(value: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down at random so that the mean is exact: random bits are added below the cut, then cut off."""
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device)
    return ((value.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def nearest_bfloat16(value: Tensor) -> Tensor:
    """float32 rounded to a bfloat16 number (nearest, ties to even), still float32. In integers: a compiler that fuses may leave out a
    conversion to bfloat16 and back, and then what the rounding left over would be zero."""
    bits = value.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -(1 << 16)).view(torch.float32)


def update(
    weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, rest: Tensor | None,
    lr: Tensor, scale1: Tensor, scale2: Tensor, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """One AdamW step (Loshchilov and Hutter 2019) on a flat piece, in place. scale1, scale2: 1 / (1 - beta^step)."""
    grad = grad.float()
    mean = first.float().lerp(grad, 1 - beta1)
    square = torch.addcmul(second.float() * beta2, grad, grad, value=1 - beta2)
    first.copy_(mean.to(torch.bfloat16))
    second.copy_(stochastic_bfloat16(square))
    exact = weight.float() if rest is None else weight.float() + rest.float()
    exact = exact * (1 - lr * decay) - lr * (mean * scale1) / ((square * scale2).sqrt() + eps)
    if rest is None:
        weight.copy_(exact)
    else:
        rounded = nearest_bfloat16(exact)
        rest.copy_((exact - rounded).to(rest.dtype))
        weight.copy_(rounded.to(weight.dtype))


class LowMemoryAdamW(torch.optim.Optimizer):
    """AdamW with bfloat16 moments for bfloat16 or float32 parameters. Arguments as torch.optim.AdamW.

    State in bytes a parameter: 4 for a float32 one, 6 for a bfloat16 one. The moments have torch's names: DeepSpeed's universal layout
    (another number of processes, see resize.py) knows no others.
    """

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._fused: Callable[..., None] | None = None

    def _update(self, device: torch.device) -> Callable[..., None]:
        if device.type != "cuda":
            return update
        if self._fused is None:
            self._fused = torch.compile(update, dynamic=True)
        return self._fused

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)  # gives the moments the parameters' type
        for state in self.state.values():
            for before, name in (("first", "exp_avg"), ("second", "exp_avg_sq")):  # checkpoints of earlier versions
                if before in state:
                    state[name] = state.pop(before)
            self.shrink(state)

    @staticmethod
    def shrink(state: dict) -> None:
        """Moments that were read as float32 become bfloat16 again (they hold no other values)."""
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(torch.bfloat16)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group, beta1, beta2)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict, beta1: float, beta2: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            if parameter.dtype != torch.float32:
                state["rest"] = torch.zeros_like(parameter)
        state["step"] += 1
        step_update = self._update(parameter.device)
        # tensors, so that a new value compiles nothing anew
        scalars = torch.tensor([group["lr"], 1 / (1 - beta1 ** state["step"]), 1 / (1 - beta2 ** state["step"])], dtype=torch.float32)
        lr, scale1, scale2 = scalars.to(parameter.device, non_blocking=True).unbind()
        rest = state.get("rest")
        pieces = [t.view(-1).split(CHUNK) for t in (parameter.data, gradient, state["exp_avg"], state["exp_avg_sq"])]
        rests = [None] * len(pieces[0]) if rest is None else rest.view(-1).split(CHUNK)
        for weight, grad, first, second, left in zip(*pieces, rests):
            step_update(weight, grad, first, second, left, lr, scale1, scale2, beta1, beta2, group["eps"], group["weight_decay"])
