"""Settings of the model with heads, saved as config.json beside its weights."""

from __future__ import annotations

from llava_next import LlavaNextConfig


class AhaConfig(LlavaNextConfig):
    """The base model's settings plus which heads there are.

    relevance_outputs: 1 = sigmoid of one logit (Aha), 2 = softmax over two, class 1 (MMDuet).
    uncertainty: whether there is a log-variance head (Aha only).
    """

    model_type = "aha"

    relevance_outputs: int = 1
    uncertainty: bool = True
