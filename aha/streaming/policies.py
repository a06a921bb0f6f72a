"""When to speak. Plain classes that see one frame's scores after the other.

    policy = MinimumGap(UncertaintyHold(Threshold(0.6), variance=0.5, max_wait_frames=5), seconds=10)
    session = model.stream(query=..., policy=policy)

`update(row)` takes a frame's scores (`time` in seconds, `informative_score`, `relevance_score`, `uncertainty_score`, as in `debug_data` of
a prediction file) and says whether to speak now; `spoke(time)` tells the policy that a reply was made. Thresholds are strict, as in MMDuet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from aha.core.heads import SCORES
from aha.errors import UserError

Row = Mapping[str, float]


def check_heads(heads: tuple[str, ...]) -> None:
    """Raises UserError for a name that is no score of a head, and where there is none (--score_heads)."""
    unknown = [head for head in heads if head not in SCORES]
    if unknown or not heads:
        raise UserError(f"--score_heads: {', '.join(unknown) or '(none)'} is none of {', '.join(SCORES)}.")


def total(row: Row, heads: tuple[str, ...]) -> float:
    try:
        return sum(row[head] for head in heads)
    except KeyError as error:
        raise UserError(f"this model gives no {error.args[0]} (MMDuet has no uncertainty head); choose other --score_heads.") from error


@dataclass
class Threshold:
    """Speak when the sum of the frame's `heads` is above `threshold` (MMDuet's stream_end_prob_threshold)."""

    threshold: float
    heads: tuple[str, ...] = ("informative_score",)

    def __post_init__(self) -> None:
        check_heads(self.heads)

    def update(self, row: Row) -> bool:
        return total(row, self.heads) > self.threshold

    def spoke(self, time: float) -> None:
        pass


@dataclass
class Accumulated:
    """Speak when the sum over all frames since the last reply is above `threshold` (MMDuet's stream_end_score_sum_threshold)."""

    threshold: float
    heads: tuple[str, ...] = ("informative_score",)
    sum: float = 0.0

    def __post_init__(self) -> None:
        check_heads(self.heads)

    def update(self, row: Row) -> bool:
        self.sum += total(row, self.heads)
        return self.sum > self.threshold

    def spoke(self, time: float) -> None:
        self.sum = 0.0


@dataclass
class AnyOf:
    """Speak when one of several policies says so; all see every frame."""

    policies: list[Any]

    def update(self, row: Row) -> bool:
        wants = [policy.update(row) for policy in self.policies]
        return any(wants)

    def spoke(self, time: float) -> None:
        for policy in self.policies:
            policy.spoke(time)


@dataclass
class UncertaintyHold:
    """Wait while the variance is above `variance`, at most `max_wait_frames` frames from when `policy` wants to speak; then it decides."""

    policy: Any
    variance: float
    max_wait_frames: int = 10
    waited: int = 0

    def update(self, row: Row) -> bool:
        if not self.policy.update(row):
            self.waited = 0
            return False
        if total(row, ("uncertainty_score",)) > self.variance and self.waited < self.max_wait_frames:
            self.waited += 1
            return False
        return True

    def spoke(self, time: float) -> None:
        self.waited = 0
        self.policy.spoke(time)


@dataclass
class MinimumGap:
    """At least `seconds` between two replies; what `policy` wants in between is dropped."""

    policy: Any
    seconds: float
    last: float | None = field(default=None)

    def update(self, row: Row) -> bool:
        wants = self.policy.update(row)
        return wants and (self.last is None or row["time"] - self.last >= self.seconds)

    def spoke(self, time: float) -> None:
        self.last = time
        self.policy.spoke(time)


def speaking_policy(
    threshold: float | None, accumulated: float | None, heads: tuple[str, ...], variance: float | None, max_wait_frames: int
) -> Any:
    """The policy of the flags --stream_end_prob_threshold, --stream_end_score_sum_threshold, --score_heads, --uncertainty_wait_threshold
    and --max_wait_frames; None (never) where both thresholds are."""
    policies: list[Any] = [] if threshold is None else [Threshold(threshold, heads)]
    policies += [] if accumulated is None else [Accumulated(accumulated, heads)]
    if not policies:
        return None
    policy = policies[0] if len(policies) == 1 else AnyOf(policies)
    return policy if variance is None else UncertaintyHold(policy, variance, max_wait_frames)


def policy_state(policy: Any) -> dict[str, Any]:
    """Everything that a policy remembers, as plain values."""
    state: dict[str, Any] = {}
    for entry in fields(policy):
        value = getattr(policy, entry.name)
        if entry.name == "policy":
            value = policy_state(value)
        elif entry.name == "policies":
            value = [policy_state(inner) for inner in value]
        elif entry.name == "heads":
            value = list(value)
        state[entry.name] = value
    return state


def load_policy_state(policy: Any, state: dict[str, Any]) -> None:
    """Put back what `policy_state` gave, into a policy built in the same way."""
    for name, value in state.items():
        if name == "policy":
            load_policy_state(policy.policy, value)
        elif name == "policies":
            for inner, inner_state in zip(policy.policies, value):
                load_policy_state(inner, inner_state)
        else:
            setattr(policy, name, tuple(value) if name == "heads" else value)
