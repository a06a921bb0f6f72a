"""A proactive set of the generated world in the published layouts, and when to speak on it: policies beside models that look at no frame.

    python -m aha.demo.proactive --output outputs/demo/proactive --seed 0 --dev_seed 1
    python -m aha.demo.proactive --frame_fps 8 --speeds 1fps,5fps,20fps,machine

Makes 25 questions for each seed ("tell me when you see something red", asked after 2 seconds; the thing comes 4 to 16 seconds later) in
StreamingBench's layout, and the same questions with the same ids as rows of OVO-Bench (CRR) and of ProactiveVideoQA (WEB): one prediction file
is scored by all three. The embedded demo model scores both sets frame by frame; policies are fitted on the other seed, held fixed, and shown
beside always, never, random, the blind rows, and an oracle that is marked as such. With --speeds the table is another: one policy (threshold,
fitted on the other seed with every frame seen), and the stream live at each speed: frames that arrive while the model is busy are lost.
Steps that are complete are not repeated.
"""  # noqa: E501

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aha.core.files import read_json, write_json, write_text
from aha.core.flags import finite
from aha.core.lost_frames import Count
from aha.core.prediction import read_predictions, write_predictions
from aha.demo.dataset import Target, VideoPlan, different_thing, write_video
from aha.demo.scenes import COLOURS, random_scene, random_thing
from aha.errors import UserError, run_command
from aha.eval import proactive
from aha.scoring.config import ScoreConfig, Selection
from aha.scoring.model_choice import ModelChoice
from aha.scoring.speak import Stream, read_streams, speak

QUESTIONS = 25
ASKED = 2  # second at which a question is asked
NAMES = {
    "streamingbench_po": "questions_proactive.json", "ovo_bench": "ovo_bench/ovo_bench_new.json", "proactivevideoqa": "proactivevideoqa",
}  # fmt: skip
POLICIES = ("threshold", "accumulated", "hold", "budget")
COLUMNS = (  # benchmark, protocol, metric, heading
    ("streamingbench_po", "streamingbench_po_push", "time_accuracy", "push: time right"),
    ("streamingbench_po", "streamingbench_po_push", "answer_accuracy", "push: answer right"),
    ("streamingbench_po", "streamingbench_po_push_recall", "recall@2s", "recall@2s"),
    ("ovo_bench", "ovo_forward_push_f1_2s", "CRR_f1", "OVO F1, 2 s"),
    ("streamingbench_po", "streamingbench_po_push", "false_alarms", "false alarms"),
    ("streamingbench_po", "streamingbench_po_push", "never", "never"),
)
TITLES = tuple(column[3] for column in COLUMNS)
DELAY = ("streamingbench_po", "streamingbench_po_push", "timing_error", "seconds off")


@dataclass(frozen=True)
class Asked:
    """One question before its video is drawn: the wanted thing is first seen at `truth` and gone at `gone` (seconds)."""

    plan: VideoPlan
    question: str
    wanted: str
    truth: int
    gone: int


def plan_question(seed: int, index: int) -> Asked:
    """Everything follows from the seed and the question's number."""
    random = np.random.default_rng([seed, 7, index])
    target = Target(colour=list(COLOURS)[int(random.integers(len(COLOURS)))])
    before = int(random.integers(3, 10)) * 2  # 6 to 18 seconds: 4 to 16 after the question
    scenes, seconds = [], 0
    while seconds < before:
        length = min(int(random.choice([2, 4])), before - seconds)
        scenes.append((random_scene(random, [different_thing(target, random) for _ in range(int(random.integers(1, 3)))]), length))
        seconds += length
    things = [random_thing(random, target.colour, target.pattern)]
    scenes.append((random_scene(random, things), 4))
    scenes.append((random_scene(random, [different_thing(target, random)]), 4))
    plan = VideoPlan(f"sample_{index}_proactive", "CO", "", target, 384, 288, Fraction(8), tuple(scenes))
    return Asked(plan, f"tell me when you see something {target.colour}", str(target.colour), before, before + 4)


def make_set(root: Path, seed: int, count: int = QUESTIONS) -> list[Asked]:
    """Write what is missing of the set of a seed. Raises UserError where the folder holds another one."""
    asked = [plan_question(seed, index) for index in range(count)]
    marker, settings = root / "demo.json", {"made_by": "aha.demo.proactive", "version": 1, "seed": seed, "questions": count}
    if marker.exists() and read_json(marker, "demo set marker") != settings:
        raise UserError(f"{root} holds a demo set made with other settings; delete the folder or choose another --output.")
    for one in tqdm(asked, desc=f"drawing the videos of seed {seed}", unit="video", disable=None):
        path = root / "videos" / f"{one.plan.video_id}.mp4"
        if not path.exists():
            write_video(one.plan, path)
    write_json(root / NAMES["streamingbench_po"], [_streamingbench(one) for one in asked])
    write_json(root / NAMES["ovo_bench"], [_ovo(one, index) for index, one in enumerate(asked)])
    write_json(root / NAMES["proactivevideoqa"] / "WEB" / "anno.json", [_videoqa(one, index) for index, one in enumerate(asked)])
    write_json(marker, settings)
    return asked


def _stamp(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _streamingbench(one: Asked) -> dict[str, Any]:
    question = {
        "task_type": "Proactive Output", "question": one.question, "time_stamp": _stamp(ASKED),
        "ground_truth_time_stamp": _stamp(one.truth), "ground_truth_output": one.wanted, "required_ability": "working memory",
    }  # fmt: skip
    span = f"[0:00:00 - {_stamp(one.plan.seconds)[1:]}]"
    return {"time": span, "questions": [question], "video_categories": "generated", "video_path": f"./videos/{one.plan.video_id}.mp4"}


def _ovo(one: Asked, index: int) -> dict[str, Any]:
    tests = [{"realtime": time, "type": int(time >= one.truth)} for time in (ASKED, one.truth, one.truth + 4)]
    return {
        "id": index, "task": "CRR", "video": f"{one.plan.video_id}.mp4", "question": one.question, "answer": one.wanted,
        "ask_time": ASKED, "clue_time": one.truth, "test_info": tests,
    }  # fmt: skip


def _videoqa(one: Asked, index: int) -> dict[str, Any]:
    answer = {
        "role": "assistant", "content": f"something {one.wanted}", "related_timespan": [one.truth, one.gone],
        "reply_timespan": [one.truth, one.gone + 1],
    }  # fmt: skip
    asked = [{"role": "user", "content": one.question, "time": ASKED}]
    return {
        "video": f"{one.plan.video_id}.mp4", "question_id": str(index), "conversation": asked, "answer": [answer],
        "duration": one.plan.seconds,
    }  # fmt: skip


# ---------------------------------------------------------------- scores and replies


def score_set(root: Path, fps: float, choice: ModelChoice, speed: str | None = None) -> Path:
    """Frame scores of a set by the model; kept. speed: live, at that --speed."""
    output = root / (f"scores-{fps:g}fps.json" if speed is None else f"scores-{fps:g}fps-live-{speed}.json")
    if not output.exists():
        from aha.scoring.dataset import score_dataset  # torch is imported only now

        config = ScoreConfig(frame_fps=fps, clock="offline" if speed is None else "wall", speed=speed)
        if not config.measured:  # else the tower's time is part of it
            config = replace(config, feature_cache=str(root / "features"))
        score_dataset(choice, config, Selection(dataset="streamingbench_po", data_root=str(root)), output)
    return output


def say(test: Path, scores: Path, dev: tuple[str, Sequence[Stream]], folder: Path, head: str) -> dict[str, Path]:
    """A prediction file for each policy: name -> file."""
    streams = read_streams(scores, proactive.moments("streamingbench_po", test))
    found = {}
    for name in (*POLICIES, "oracle", "always", "never", "random"):
        policy = "threshold" if name == "oracle" else name
        fitted_on = dev if name in POLICIES else None
        replies, said = speak(streams, policy, (head,), fitted_on, oracle=name == "oracle")
        found[name] = folder / f"{name}.jsonl"
        write_predictions(found[name], replies)
        print(f"{name}: {said}")
    return found


def numbers(test: Path, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics of every benchmark, its blind rows)."""
    metrics = {name: proactive.evaluate(name, file, test / place) for name, place in NAMES.items()}
    return {name: found["protocols"] for name, found in metrics.items()}, {name: found["baselines"] for name, found in metrics.items()}


def render(rows: list[tuple[str, list[float | None]]], titles: Sequence[str] = TITLES) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [f"{f'{QUESTIONS} questions':{width}} | " + " | ".join(titles)]
    lines.append(" | ".join("-" * len(cell) for cell in [" " * width, *titles]))
    for name, values in rows:
        cells = [f"{'-' if value is None else f'{value:.3f}':>{len(title)}}" for value, title in zip(values, titles)]
        lines.append(f"{name:{width}} | " + " | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _mean(tree: Mapping[str, Any], protocol: str, metric: str) -> float | None:
    return tree.get(protocol, {}).get(metric, {}).get("mean")


def make_sets(output: Path, seed: int, dev_seed: int, count: int) -> dict[int, Path]:
    """seed -> folder of the test set and of the one that policies are fitted on. Raises UserError."""
    if seed == dev_seed:
        raise UserError(f"--dev_seed {dev_seed} is the test seed; policies are fitted on another world.")
    roots = {s: output / f"seed{s}" for s in (seed, dev_seed)}
    for s, root in roots.items():
        make_set(root, s, count)
    return roots


def run_demo(output: Path, seed: int, dev_seed: int, fps: float, head: str, count: int = QUESTIONS) -> str:
    """All steps; returns the table."""
    roots = make_sets(output, seed, dev_seed, count)
    scores = {s: score_set(root, fps, ModelChoice()) for s, root in roots.items()}
    streams = read_streams(scores[dev_seed], proactive.moments("streamingbench_po", roots[dev_seed]))
    dev = f"generated seed {dev_seed}", [stream for stream, _ in streams.values()]
    rows = []
    blind: dict[str, Any] = {}
    for name, file in say(roots[seed], scores[seed], dev, output / f"replies-seed{seed}", head).items():
        found, blind = numbers(roots[seed], file)
        label = "ORACLE (threshold of this very set)" if name == "oracle" else f"policy: {name}" if name in POLICIES else name
        rows.append((label, [_mean(found[benchmark], protocol, metric) for benchmark, protocol, metric, _ in COLUMNS]))
    for row, label in proactive.ROWS.items():
        values = [_mean(blind[benchmark].get(row, {}), protocol, metric) for benchmark, protocol, metric, _ in COLUMNS]
        if any(value is not None for value in values):
            rows.append((label, values))
    table = render(rows)
    write_text(output / f"table-seed{seed}.md", table + "\n")
    return table


def run_live(output: Path, seed: int, dev_seed: int, fps: float, head: str, speeds: Sequence[str], count: int = QUESTIONS) -> str:
    """The same questions live: one policy, fitted with every frame seen, at each speed of the model; returns the table."""
    roots = make_sets(output, seed, dev_seed, count)
    asked = {s: proactive.moments("streamingbench_po", root) for s, root in roots.items()}
    dev = read_streams(score_set(roots[dev_seed], fps, ModelChoice()), asked[dev_seed])
    fitted_on = f"generated seed {dev_seed}", [stream for stream, _ in dev.values()]
    columns, rows = (*COLUMNS, DELAY), []
    for speed in (None, *speeds):
        scores = score_set(roots[seed], fps, ModelChoice(), speed)
        replies, _ = speak(read_streams(scores, asked[seed]), "threshold", (head,), fitted_on)
        file = output / f"replies-seed{seed}" / f"live-{fps:g}fps-{speed or 'every-frame'}.jsonl"
        write_predictions(file, replies)
        found, _ = numbers(roots[seed], file)
        counted = Count()
        for prediction in read_predictions(scores):
            counted.add(prediction.record)
        lost = counted.lost / counted.arrived if counted.arrived else 0.0
        means = [_mean(found[benchmark], protocol, metric) for benchmark, protocol, metric, _ in columns]
        rows.append((f"live, {speed}" if speed else "every frame seen", [lost, *means]))
    table = render(rows, ("frames lost", *TITLES, DELAY[3]))
    write_text(output / f"table-live-seed{seed}.md", table + "\n")
    return table


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser("python -m aha.demo.proactive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", default="outputs/demo/proactive", help="folder for videos, scores and replies (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the test set (default %(default)s)")
    p.add_argument("--dev_seed", type=int, default=1, help="of the set that policies are fitted on (default %(default)s)")
    p.add_argument("--frame_fps", type=finite, default=2.0, help="frames a second that are scored (default %(default)s)")
    p.add_argument("--score_head", default="relevance_score", help="head that the policies read (default %(default)s)")
    p.add_argument("--speeds", metavar="A,B", help="live at these, as --speed of aha score: 1fps,5fps,20fps,machine (default: not live)")
    args = p.parse_args(argv)
    settings = Path(args.output), args.seed, args.dev_seed, args.frame_fps, args.score_head
    print("\n" + (run_live(*settings, args.speeds.split(",")) if args.speeds else run_demo(*settings)))


if __name__ == "__main__":
    run_command(main)
