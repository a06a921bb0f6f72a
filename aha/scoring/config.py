"""ScoreConfig: how videos are scored. One dataclass gives the flags, the Python arguments and the key of what is kept on disk.

    config = ScoreConfig(frame_fps=2, cache="dynamic_sink", stream_end_prob_threshold=0.6)
    reference = replace(config, **RELEASED)

Importing this module is light: no torch.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from typing import Any

from aha.conversation import PROMPT_ORDERS, checked_system_prompt
from aha.core.flags import add_flags, check_choices, flag, from_args
from aha.core.folds import N_FOLDS, SPLITS
from aha.core.heads import SCORES
from aha.core.prompts import STYLES
from aha.errors import UserError
from aha.eval import MODULES
from aha.streaming.caches import CACHES, DEFAULT_SINK_TOKENS, DEFAULT_WINDOW, SEMANTICS
from aha.streaming.policies import check_heads, speaking_policy
from aha.streaming.stream_clock import CLOCKS, MACHINE, StreamClock
from aha.video.corrupt import KINDS, Corruption
from aha.video.reader import BACKENDS, SAMPLINGS

RELEASED = {"prompt_order": "reference", "cache_semantics": "reference", "sampling": "reference"}  # as the published code does
SPEAK = ("stream_end_prob_threshold", "stream_end_score_sum_threshold", "score_heads", "uncertainty_wait_threshold", "max_wait_frames",
         "remove_assistant_turns", "repetition_penalty", "max_new_tokens")  # fmt: skip


@dataclass(frozen=True)
class ScoreConfig:
    """How videos are scored. Raises UserError for settings that cannot work."""

    frame_fps: float = flag(1.0, "frames a second; 0: --max_num_frames frames spread over the video", metavar="FPS")
    max_num_frames: int | None = flag(None, "stop after N frames", metavar="N", low=1)
    sampling: str = flag("timestamps", "which frames: by their time stamps, or as the published code does", choices=SAMPLINGS)
    video_backend: str = flag("pyav", "who decodes the videos", choices=tuple(BACKENDS))
    prompt_order: str = flag("aha", "query after the system prompt, as in training, or as the published code does", choices=PROMPT_ORDERS)
    system_prompt: str | None = flag(None, "first words of every conversation (default: those of its training)", metavar="TEXT")
    cache: str = flag("full", "which past the model keeps", choices=CACHES)
    window: int | None = flag(None, f"tokens kept by a bounded cache (default {DEFAULT_WINDOW})", metavar="N")
    sink_tokens: int | None = flag(None, f"first tokens that --cache sink always keeps (default {DEFAULT_SINK_TOKENS})", metavar="N")
    cache_semantics: str = flag("aha", "positions of a bounded cache: ours, or those of the published code", choices=SEMANTICS)
    chunk_frames: int = flag(64, "frames in one forward call: speed only, not the scores", metavar="N")
    feature_cache: str | None = flag(
        None, "keep vision features there (390 kB a frame in 16 bits) and use those that are there; shared with training", metavar="DIR"
    )
    compile: bool = flag(False, "fuse the decoder's kernels (GPU; a minute of warm-up, worth it for many videos)")
    clock: str = flag("offline", "offline: the model sees every frame; wall: what arrives while it is busy is lost", choices=CLOCKS)
    speed: str | None = flag(
        None, "of --clock wall: machine (as fast as this one is: the default), 10fps (a frame costs 1/10 s of stream time), inf",
        metavar="SPEED",
    )  # fmt: skip
    stream_end_prob_threshold: float | None = flag(None, "reply when a frame's score is above X", metavar="X")
    stream_end_score_sum_threshold: float | None = flag(None, "reply when the sum since the last reply is above X", metavar="X")
    score_heads: str = flag("informative_score", f"heads added up: {', '.join(SCORES)}", metavar="A,B")
    uncertainty_wait_threshold: float | None = flag(None, "wait while the variance is above X", metavar="X")
    max_wait_frames: int = flag(10, "wait at most N frames", metavar="N", low=0)
    remove_assistant_turns: bool = flag(False, "a reply leaves no trace in what the model remembers")
    repetition_penalty: float | None = flag(None, "divide the logits of tokens that were said before by X", metavar="X")
    max_new_tokens: int = flag(200, "longest reply, in tokens", metavar="N")
    corrupt: str | None = flag(None, "make a share of every video's seconds worse: robustness studies", choices=KINDS)
    corrupt_ratio: float = flag(0.2, "that share, 0 to 1", metavar="X")
    seed: int = flag(0, "of --corrupt and --prompt_style unrelated")

    def __post_init__(self) -> None:
        check_choices(self)
        checked_system_prompt(self.system_prompt)
        if self.frame_fps < 0 or (self.frame_fps == 0 and not self.max_num_frames):
            raise UserError(f"--frame_fps is {self.frame_fps}; give frames a second above 0, or 0 together with --max_num_frames.")
        if self.chunk_frames < 1:
            raise UserError(f"--chunk_frames is {self.chunk_frames}; give at least 1.")
        check_heads(self.heads)
        if self.uncertainty_wait_threshold is not None and not self.speaks:
            raise UserError(
                "--uncertainty_wait_threshold waits with a reply; give --stream_end_prob_threshold or ..._score_sum_threshold too."
            )
        if self.speed is not None and self.clock != "wall":
            raise UserError(f"--speed {self.speed} is for --clock wall; without it the model sees every frame.")
        _ = self.corruption, self.stream_clock()  # their own checks
        if self.measured and self.feature_cache is not None:
            raise UserError("--speed machine measures the vision tower too; leave out --feature_cache, or give a speed such as 10fps.")

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.score_heads.split(","))

    @property
    def speaks(self) -> bool:
        return self.stream_end_prob_threshold is not None or self.stream_end_score_sum_threshold is not None

    @property
    def corruption(self) -> Corruption | None:
        return Corruption(self.corrupt, self.corrupt_ratio, self.seed) if self.corrupt else None

    @property
    def measured(self) -> bool:
        """Whether a frame costs the time that this machine takes for it (--speed machine)."""
        return self.clock == "wall" and self.speed in (None, MACHINE)

    def stream_clock(self) -> StreamClock | None:
        """The clock of a new stream; None: the model sees every frame."""
        return StreamClock.of(MACHINE if self.speed is None else self.speed) if self.clock == "wall" else None

    def policy(self) -> Any:
        """When to speak; None: never. It remembers scores: each video takes a new one."""
        return speaking_policy(self.stream_end_prob_threshold, self.stream_end_score_sum_threshold, self.heads,
                               self.uncertainty_wait_threshold, self.max_wait_frames)  # fmt: skip

    def session(self) -> dict[str, Any]:
        """Settings of aha.streaming.Session, with a policy of its own."""
        names = ("cache", "window", "sink_tokens", "cache_semantics", "prompt_order", "system_prompt", "remove_assistant_turns",
                 "repetition_penalty", "max_new_tokens")  # fmt: skip
        return {"policy": self.policy(), **{name: getattr(self, name) for name in names}}

    def reading(self) -> dict[str, Any]:
        """Which frames are read: arguments of aha.video.iter_frames."""
        spread = self.frame_fps == 0
        return {
            "fps": None if spread else self.frame_fps, "num_frames": self.max_num_frames if spread else None,
            "max_frames": None if spread else self.max_num_frames, "sampling": self.sampling, "backend": self.video_backend,
        }  # fmt: skip

    def expected_frames(self, duration: float) -> int:
        """Frames of a video of `duration` seconds, about: for progress bars."""
        if self.frame_fps == 0:
            return self.max_num_frames or 0  # which --frame_fps 0 is never without
        return min(self.max_num_frames or sys.maxsize, max(int(duration * self.frame_fps), 1))

    def key(self) -> list[tuple[str, Any]]:
        """Everything that changes scores. The clock counts only where it is on: it came later, and what was begun without it must still be
        found."""
        left_out = {"feature_cache"} if self.clock == "wall" else {"feature_cache", "clock", "speed"}
        return [(entry.name, getattr(self, entry.name)) for entry in fields(self) if entry.name not in left_out]


@dataclass(frozen=True)
class Selection:
    """Which benchmark, which of its videos, and how they are asked."""

    dataset: str | None = flag(None, f"a whole benchmark: {', '.join(MODULES)}", metavar="NAME")
    data_root: str | None = flag(None, "folder of the data set (default datasets/NAME), in its official layout", metavar="DIR")
    fold: int | None = flag(None, f"0 to {N_FOLDS - 1}: of TVSum's {N_FOLDS} seeded folds (aha.core.folds)", metavar="N")
    splits: str | None = flag(None, "splits file (PGL-SUM, DSNet, CSTA) or umt: --fold K is then its K-th split (tvsum)", metavar="FILE")
    split: str | None = flag(
        None,
        "which part of the fold (tvsum; default: test with --fold, else all) or of the data set (hisum; default test)",
        choices=SPLITS,
    )
    query_map: str | None = flag(
        None,
        "other queries than the titles: JSON {video id: query}, or a table of Aha's file, tvsum_tasks.py:TVSUM_AMBIGUOUS_TITLES",
        metavar="FILE",
    )
    prompt_style: str = flag("specific", "wording of a benchmark's queries", choices=STYLES)
    limit: int | None = flag(None, "only the first N videos", metavar="N", low=1)
    seed: int = 0  # of prompt_style unrelated

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def benchmark(self) -> str:
        """The data set that was chosen. Raises UserError where none was."""
        if self.dataset is None:
            raise UserError("no benchmark was chosen; give --dataset NAME.")
        return self.dataset


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """All flags of ScoreConfig, and --released."""
    names = [entry.name for entry in fields(ScoreConfig)]
    how = parser.add_argument_group("how")
    add_released_flag(how)
    add_flags(how, ScoreConfig, only=[name for name in names if name not in SPEAK])
    add_flags(parser.add_argument_group("when to speak (without a threshold nothing is said)"), ScoreConfig, only=SPEAK)


def add_released_flag(parser: Any) -> None:
    shown = " ".join(f"--{name} {value}" for name, value in RELEASED.items())
    parser.add_argument("--released", action="store_true", help=f"score as the published MMDuet and Aha code does: {shown}")


def score_config_of(args: argparse.Namespace, **others: Any) -> ScoreConfig:
    """The ScoreConfig of the flags. Raises UserError where --released contradicts another flag."""
    if args.released:
        for name, value in RELEASED.items():
            if getattr(args, name, value) != value:
                raise UserError(f"--released means --{name} {value}, and --{name} {getattr(args, name)} was given; leave one of them out.")
        others = {**RELEASED, **others}
    return from_args(ScoreConfig, args, **others)
