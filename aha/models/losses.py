"""Training objectives: each part has a name, a raw value and a weight; nothing is logged here.

Two objectives: Aha's (arXiv 2509.16421, section 3.3 and the released training code's weights) and MMDuet's (two cross entropies beside
language modelling). A batch without a kind of label gives exactly 0 to that part, with the head still in the graph: every rank of a
distributed run does the same communication.

Where the released Aha code is defective this is the intended loss:
- total variation runs over adjacent labelled frames of a conversation, not over adjacent tokens;
- the Gaussian term pairs frame n's label with frame n's variance, not every label with every variance;
- it may be negative (a Gaussian likelihood can exceed 1); the released clamp at zero kills its gradient once the fit is good;
- labels that are absent are left out, not replaced by a label at position 0; one valid label is enough for the relevance part.

Shapes: N scored frames, M positions with a language label, V vocabulary, B batch, T tokens. Labels are aligned with the position that
predicts them: labels[b, t] is what position t should say (next token, or score of the frame that ends there); IGNORE_INDEX = no label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aha.conversation import IGNORE_INDEX
from aha.models.model import AhaOutput

LOG_VARIANCE_RANGE = (-4.0, 1.5)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts (Aha's released training settings). `tv` is applied inside the relevance part: 0.05 of it."""

    lm: float = 0.2
    informative: float = 0.5
    relevance: float = 8.0
    tv: float = 0.05
    uncertainty: float = 0.1


MMDUET_WEIGHTS = LossWeights(lm=1.0, informative=1.0, relevance=1.0, tv=0.0, uncertainty=0.0)


@dataclass
class Losses:
    """`total` is for backward; `parts` the raw parts and `weighted` the same times their weights (the sum of `weighted` is `total`)."""

    total: Tensor
    parts: dict[str, Tensor]
    weighted: dict[str, Tensor]


def _mean(values: Tensor, count: int) -> Tensor:
    """Sum over `count`, 0 (with a gradient path) for none."""
    return values.sum() / max(count, 1)


def language_loss(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Cross entropy over the labelled positions, mean over them."""
    if not len(target_M):
        return logits_MV.float().sum()
    return F.cross_entropy(logits_MV.float(), target_M)


def classification_loss(logits_N2: Tensor, label_N: Tensor) -> Tensor:
    """Cross entropy of a 2-class head over frames whose label is not IGNORE_INDEX."""
    valid_N = label_N != IGNORE_INDEX
    losses = F.cross_entropy(logits_N2[valid_N].float(), label_N[valid_N].long(), reduction="sum")
    return losses / max(int(valid_N.sum()), 1)


def relevance_loss(relevance_N: Tensor, label_N: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between relevance in (0, 1) and its label, mean over labelled frames."""
    valid_N = label_N != IGNORE_INDEX
    return _mean(F.smooth_l1_loss(relevance_N[valid_N], label_N[valid_N], reduction="none"), int(valid_N.sum()))


def total_variation(relevance_N: Tensor, label_N: Tensor, batch_N: Tensor) -> Tensor:
    """Mean |difference| of the relevance of neighbouring labelled frames of the same conversation (frames are in time order)."""
    valid_N = label_N != IGNORE_INDEX
    values, owner = relevance_N[valid_N], batch_N[valid_N]
    same = owner[1:] == owner[:-1]
    return _mean((values[1:] - values[:-1]).abs()[same], int(same.sum()))


def gaussian_nll(relevance_N: Tensor, log_variance_N: Tensor, label_N: Tensor) -> Tensor:
    """0.5 * (s + (label - relevance)^2 / exp(s)), s = log-variance clamped to [-4, 1.5]; mean over labelled frames."""
    valid_N = label_N != IGNORE_INDEX
    s = log_variance_N[valid_N].float().clamp(*LOG_VARIANCE_RANGE)
    error2 = (label_N[valid_N] - relevance_N[valid_N]).square()
    return _mean(0.5 * (s + error2 * torch.exp(-s)), int(valid_N.sum()))


def _sum_up(parts: dict[str, Tensor], weights: dict[str, float]) -> Losses:
    weighted = {name: value * weights[name] for name, value in parts.items()}
    return Losses(torch.stack(list(weighted.values())).sum(), parts, weighted)


def _frame_labels(output: AhaOutput, labels_BT: Tensor) -> Tensor:
    return labels_BT[output.batch_N, output.position_N]


def aha_losses(
    output: AhaOutput, labels_BT: Tensor, informative_labels_BT: Tensor, relevance_labels_BT: Tensor, weights: LossWeights | None = None
) -> Losses:
    """Aha's objective. `output.logits_MV` must be those of the positions where `labels_BT` is not IGNORE_INDEX (logits_mask).

    Parts: lm, informative, relevance, tv, uncertainty. Weights of relevance and tv: 8.0 and 8.0 * 0.05.
    """
    weights = weights or LossWeights()
    relevance_N = output.scores().relevance
    label_N = _frame_labels(output, relevance_labels_BT).float()
    parts = {
        "lm": language_loss(output.logits_MV, labels_BT[labels_BT != IGNORE_INDEX]),
        "informative": classification_loss(output.head_logits["informative"], _frame_labels(output, informative_labels_BT)),
        "relevance": relevance_loss(relevance_N, label_N),
        "tv": total_variation(relevance_N, label_N, output.batch_N),
        "uncertainty": gaussian_nll(relevance_N, output.log_variance_N, label_N),
    }
    return _sum_up(parts, {
        "lm": weights.lm, "informative": weights.informative, "relevance": weights.relevance, "tv": weights.relevance * weights.tv,
        "uncertainty": weights.uncertainty,
    })  # fmt: skip


def mmduet_losses(
    output: AhaOutput, labels_BT: Tensor, informative_labels_BT: Tensor, relevance_labels_BT: Tensor, weights: LossWeights = MMDUET_WEIGHTS
) -> Losses:
    """MMDuet's objective (arXiv 2411.17991, section 3.3): language modelling plus a cross entropy for each 2-class head."""
    parts = {
        "lm": language_loss(output.logits_MV, labels_BT[labels_BT != IGNORE_INDEX]),
        "informative": classification_loss(output.head_logits["informative"], _frame_labels(output, informative_labels_BT)),
        "relevance": classification_loss(output.head_logits["relevance"], _frame_labels(output, relevance_labels_BT)),
    }
    return _sum_up(parts, {"lm": weights.lm, "informative": weights.informative, "relevance": weights.relevance})
