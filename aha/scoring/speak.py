"""From frame scores to times to speak, by a rule that is fixed before the test set is seen. `aha speak`:

    aha speak test.json --benchmark streamingbench_po --annotations TEST --policy threshold --fit dev.json --fit_annotations DEV --output said.jsonl
    aha speak test.json --benchmark ovo_bench --annotations TEST --policy budget --alarms_per_minute 2 --output said.jsonl
    aha speak test.json --benchmark ovo_bench --annotations TEST --policy threshold --oracle --output limit.jsonl

Policies: threshold (of a frame), accumulated (sum since the last reply), hold (threshold, but wait while the variance is high: needs the
uncertainty head), budget (the threshold with which unlabelled streams get at most so many replies a minute; label-free). The first three are
fitted on --fit, a scored file of another set with its annotations: the value with the best F1 of replies within the answers' windows. Budget
takes the scores of --fit where it is given, else those of the file itself, never labels. --oracle fits on the test set itself and says so in
the result. Each reply is the question's own words, or the words that the scored file has at that time.
"""  # noqa: E501 (commands)

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aha.core.flags import check_outputs, finite
from aha.core.fusion import Fusion
from aha.core.prediction import Prediction, keyed, read_predictions, write_predictions
from aha.errors import UserError, run_command
from aha.eval.proactive import Moments, moments
from aha.metrics.proactive import timing
from aha.streaming.policies import Accumulated, MinimumGap, Threshold, UncertaintyHold, check_heads, total

POLICIES = ("threshold", "accumulated", "hold", "budget", "always", "never", "random")
GAP = 5.0  # seconds between two replies
HOLD_FRAMES = 3  # that policy hold waits at most
REPLIES_PER_MINUTE = 2.0  # of policy budget, where no number is given
LEVELS = 200  # values that are tried
NO_HEAD = Fusion(beta=0.0)
Stream = tuple[Moments, list[dict[str, float]]]  # a question and its frames' rows


def read_streams(path: str | Path, asked: Mapping[str, Moments]) -> dict[str, tuple[Stream, Prediction]]:
    """Frame scores of the questions, from the second at which each is asked to its stream's end. Raises UserError."""
    found = {}
    for key, prediction in keyed(read_predictions(path), lambda prediction: prediction.question_id, "question"):
        one = asked.get(key)
        if one is None:
            continue
        times, _ = prediction.timed_scores(NO_HEAD)  # checked
        rows = prediction.rows()
        if any("time" not in row for row in rows):  # then frame_fps says them
            rows = [{**row, "time": time} for row, time in zip(rows, times.tolist())]
        found[key] = (one, [row for row in rows if one.start < row["time"] <= one.end]), prediction
    if not found:
        raise UserError(f"{path} scores none of the {len(asked)} questions; elements are found by question_id.")
    return found


def check_scored(streams: Mapping[str, tuple[Stream, Prediction]], heads: tuple[str, ...]) -> None:
    """Raises UserError where a frame lacks one of the heads, or has no number there."""
    for _, prediction in streams.values():
        for head in heads:
            prediction.head(head)


def make(policy: str, value: float, heads: tuple[str, ...], variance: float = 0.0) -> Any:
    """A new policy of this name. value: its threshold; variance: above which policy hold waits."""
    if policy == "accumulated":
        return MinimumGap(Accumulated(value, heads), GAP)
    if policy == "hold":
        return MinimumGap(UncertaintyHold(Threshold(value, heads), variance, HOLD_FRAMES), GAP)
    return MinimumGap(Threshold(value, heads), GAP)


def times_of(policy: Any, rows: Sequence[Mapping[str, float]]) -> list[float]:
    """Seconds at which the policy speaks when it is given the frames one after the other; `policy` itself stays as it is."""
    policy, times = copy.deepcopy(policy), []
    for row in rows:
        if policy.update(row):
            policy.spoke(row["time"])
            times.append(row.get("decided", row["time"]))  # it speaks when it knows
    return times


def f1(policy: Any, streams: Sequence[Stream]) -> float:
    """2 x answers that are met / (answers + replies)."""
    met = answers = replies = 0.0
    for one, rows in streams:
        times = times_of(policy, rows)
        row = timing(one.windows, times)
        met += len(one.windows) * (1 - row["early"] - row["late"] - row["never"])
        answers, replies = answers + len(one.windows), replies + len(times)
    return 2 * met / (answers + replies) if answers + replies else 0.0


def levels(streams: Sequence[Stream], heads: tuple[str, ...], accumulated: bool) -> np.ndarray:
    """Values worth trying: quantiles of the frames' scores, or of their sums."""
    scores = [np.array([total(row, heads) for row in rows]) for _, rows in streams if rows]
    values = np.concatenate([np.cumsum(s) if accumulated else s for s in scores])
    return np.unique(np.quantile(values, np.linspace(0, 1, LEVELS)))


def fit(policy: str, streams: Sequence[Stream], heads: tuple[str, ...], variance: float) -> tuple[float, float]:
    """(value, its F1) of the best value; of equal ones the middle one."""
    tried = levels(streams, heads, policy == "accumulated")
    scores = np.array([f1(make(policy, value, heads, variance), streams) for value in tried])
    best = np.flatnonzero(scores == scores.max())
    return float(tried[best[len(best) // 2]]), float(scores.max())


def within_budget(streams: Sequence[Stream], heads: tuple[str, ...], per_minute: float) -> float:
    """The lowest threshold with which the streams get at most so many replies a minute. No label is looked at."""
    minutes = sum(rows[-1]["time"] - rows[0]["time"] for _, rows in streams if rows) / 60
    for value in levels(streams, heads, False):
        if sum(len(times_of(make("threshold", value, heads), rows)) for _, rows in streams) <= per_minute * minutes:
            return float(value)
    return float("inf")


def speak(
    streams: Mapping[str, tuple[Stream, Prediction]],
    policy: str,
    heads: tuple[str, ...] = ("relevance_score",),
    fitted_on: tuple[str, Sequence[Stream]] | None = None,
    oracle: bool = False,
    per_minute: float = REPLIES_PER_MINUTE,
    seed: int = 0,
) -> tuple[list[Prediction], str]:
    """(predictions with the replies, a sentence that says which rule spoke and on what it was fitted).

    streams: question id -> its stream and scored prediction. heads: added up. fitted_on: (name, streams) of another set. per_minute: of
    policy budget. Raises UserError where a policy needs a fit or a head that is not there.
    """
    own = [stream for stream, _ in streams.values()]
    name, dev = ("THE TEST SET ITSELF (oracle, no result)", own) if oracle else fitted_on or ("", [])
    rng, chosen = np.random.default_rng(seed), None
    if policy in ("always", "never", "random"):
        said = {"always": f"speaks every {GAP:g} s", "never": "never speaks", "random": f"one random second each, seed {seed}"}[policy]
    elif policy == "budget":
        value = within_budget(dev or own, heads, per_minute)
        chosen = make("threshold", value, heads)
        where = f"{name}, unlabelled" if dev else "these streams, unlabelled"
        said = f"alarm budget, label-free: {'+'.join(heads)} > {value:.4g}, at most {per_minute:g} replies a minute on {where}"
    else:
        if not dev:
            raise UserError(f"--policy {policy} has a value to be fitted: give --fit and --fit_annotations of another set, or --oracle.")
        variance = 0.0
        if policy == "hold":
            if not all("uncertainty_score" in row for _, rows in dev for row in rows):
                raise UserError("--policy hold needs the uncertainty head; the scored file has none.")
            seen = [row["uncertainty_score"] for _, rows in dev for row in rows]
            variance = float(np.median(seen))
        value, best = fit(policy, dev, heads, variance)
        chosen = make(policy, value, heads, variance)
        wait = f", waits at most {HOLD_FRAMES} frames while the variance is above {variance:.4g}" if policy == "hold" else ""
        said = f"{policy}: {'+'.join(heads)} > {value:.4g}{wait}, fitted on {name} (F1 {best:.3f} there), held fixed"
    result = []
    for key, ((one, rows), prediction) in streams.items():
        if policy == "never" or not rows:
            times = []
        elif policy == "random":
            times = [rows[int(rng.integers(len(rows)))]["time"]]
        else:
            times = times_of(chosen if chosen is not None else MinimumGap(Threshold(-np.inf, heads), GAP), rows)
        spoken = {turn["time"]: turn["content"] for turn in prediction.record.get("model_response_list") or []}
        replies = [{"role": "assistant", "time": time, "content": spoken.get(time, one.words)} for time in times]
        kept = {k: v for k, v in prediction.record.items() if k not in ("debug_data", "true_frames_list")}
        result.append(Prediction({**kept, "question_id": key, "model_response_list": replies, "policy": said}, prediction.where))
    return result, said


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser("aha speak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("predictions", help="scored file of the test set (aha score, aha baseline)")
    p.add_argument("--benchmark", required=True, help="ovo_bench, streamingbench_po or proactivevideoqa")
    p.add_argument(
        "--annotations", required=True, metavar="PATH", help="its annotations: when questions are asked (and, --oracle, the truth)"
    )
    p.add_argument("--policy", required=True, choices=POLICIES)
    p.add_argument("--fit", metavar="FILE", help="scored file of another set")
    p.add_argument("--fit_annotations", metavar="PATH", help="annotations of that set")
    p.add_argument("--oracle", action="store_true", help="fit on the test set itself: an upper limit, marked as such")
    p.add_argument(
        "--alarms_per_minute", type=finite, default=REPLIES_PER_MINUTE, metavar="N", help="of --policy budget (default %(default)s)"
    )
    p.add_argument("--score_heads", default="relevance_score", metavar="A,B", help="heads added up (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of --policy random")
    p.add_argument("--output", required=True, metavar="FILE", help="prediction file with the replies")
    args = p.parse_args(argv)
    check_outputs(args, "output")
    heads = tuple(args.score_heads.split(","))
    check_heads(heads)
    if bool(args.fit) != bool(args.fit_annotations):
        raise UserError("--fit and --fit_annotations belong together: scores and truth of one other set.")
    if args.fit and Path(args.fit_annotations).resolve() == Path(args.annotations).resolve():
        raise UserError("--fit_annotations is the test set itself; fit on another set, or say so with --oracle.")
    streams = read_streams(args.predictions, moments(args.benchmark, args.annotations))
    if args.policy != "never":
        check_scored(streams, heads)
    if not args.alarms_per_minute >= 0:
        raise UserError(f"--alarms_per_minute {args.alarms_per_minute:g}: give a number from 0 on.")
    fitted_on = None
    if args.fit:
        dev = read_streams(args.fit, moments(args.benchmark, args.fit_annotations))
        check_scored(dev, heads)
        fitted_on = args.fit, [stream for stream, _ in dev.values()]
    found, said = speak(streams, args.policy, heads, fitted_on, args.oracle, args.alarms_per_minute, args.seed)
    write_predictions(args.output, found)
    replies = sum(len(prediction.record["model_response_list"]) for prediction in found)
    print(f"{said}\n{replies} replies to {len(found)} questions -> {args.output}")


if __name__ == "__main__":
    run_command(main)
