"""The heads: what the model says of a frame, listed once. The model, its adapters, losses, labels, policies and records iterate over this.

A new head is an entry here, a field of `aha.models.FrameScores`, a term in the loss (aha.models.losses), and its labels: a field of
`aha.conversation.Turn` and the code in aha.data that fills it. Its score is then computed, written to prediction files, known to the
policies that decide when to speak, trained, and saved with adapters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """One head: a linear layer on the decoder's hidden state of a frame's last token.

    outputs: numbers of outputs that its matrix may have; the first is Aha's own. activation: "probability" (sigmoid of one output, softmax
    class 1 of two) or "variance" (exp of a log-variance). label: type of its labels, "int64" (classes) or "float32" (values); None = it has
    no labels of its own. required: an adapter without it is neither MMDuet's nor Aha's. start: standard deviation of a new head's weights.
    """

    name: str
    outputs: tuple[int, ...]
    activation: str
    label: str | None = None
    required: bool = False
    start: float = 0.0

    @property
    def module(self) -> str:
        """Its module in the model and in adapters."""
        return f"{self.name}_head"

    @property
    def weight(self) -> str:
        return f"{self.name}_head.weight"

    @property
    def score(self) -> str:
        """Its key in a prediction file."""
        return f"{self.name}_score"

    @property
    def labels(self) -> str:
        """The array of its labels in a training sample; with _BT in a batch."""
        return f"{self.name}_labels"


HEADS = (
    Head("informative", (2,), "probability", label="int64", required=True, start=0.02),
    Head("relevance", (1, 2), "probability", label="float32", required=True, start=0.02),  # 1: Aha, 2: MMDuet
    Head("uncertainty", (1,), "variance"),  # Aha only; 0 = log-variance 0, that is variance 1
)
MODULES = tuple(head.module for head in HEADS)
SCORES = tuple(head.score for head in HEADS)
LABELLED = tuple(head for head in HEADS if head.label is not None)
