"""Proactive and streaming benchmarks: every published way of counting that a file allows, by name, beside models that look at no frame.

    python -m aha.eval.proactive --benchmark ovo_bench --annotations ovo_bench_new.json --predictions results.json --output metrics.json
    python -m aha.eval.proactive --benchmark streamingbench_po --annotations questions_proactive.json --predictions replies.jsonl
    python -m aha.eval.proactive --benchmark proactivevideoqa --annotations DIR --predictions DIR --judge_replies judge.jsonl

Other models' files are read as they are (layouts: aha/eval/proactive_files.py). DIR of proactivevideoqa holds SUBSET/anno.json, and
SUBSET.jsonl or SUBSET/predictions.jsonl; PAUC takes a judge's kept replies (--judge_replies), or asks one (--judge, as MAGQA does).
The time of a reply is the file's: aha.score writes k/fps of the frame. --reply_time interval_end adds one step, to (k+1)/fps, the end of
what was seen, which the published evaluators use. Definitions: test/data/proactive/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aha.core.fusion import RELEVANCE, Fusion
from aha.errors import UserError, run_command
from aha.eval import proactive_ovo as ovo
from aha.eval import proactive_streaming as streaming
from aha.eval import proactive_videoqa as videoqa
from aha.eval.command import Benchmark, run, select, select_protocols
from aha.eval.magqa import JudgeSettings, add_judge_flags, grade_pairs
from aha.eval.proactive_files import Said
from aha.eval.task import DataSet, File, Item, Task
from aha.metrics.proactive import LATEST, around
from aha.results import table
from aha.results.layout import Headline, Protocol
from aha.results.tree import Column, Scored

REPLY_TIMES = ("frame", "interval_end")
ROWS = {
    "silence": "blind: silence", "always_yes": "blind: always yes", "abcde": "blind: ABCDE", "always_a": "blind: always A",
    "every_5_s": "blind: every 5 s", "echo_after_6_s": "blind: the question 6 s later",
}  # fmt: skip
ECHO = "blind rows look at no frame; the 6 s of the echo were chosen on the published StreamingBench set"
BLIND_PAUC = "PAUC of the blind rows: no judge is asked about them, every reply counts as wrong (1 of 3)"
MAIN = {ovo.PUSH: "average_f1", "streamingbench_po_push_recall": "recall@2s"}  # the number a protocol is named for, where it is not MAINS
MAINS = ("average", "time_accuracy", "micro")


@dataclass(frozen=True)
class Source:
    """How one benchmark is read and scored. read: path -> questions; said: (path, questions, model name, reply time) -> Said; columns:
    (questions, Said) -> columns; blind: questions -> row -> Said; silent: whether a question without a prediction counts as silent."""

    read: Callable[[str | Path], Mapping[str, Any]]
    said: Callable[[Path, Mapping[str, Any], str | None, str], Said]
    columns: Callable[[Mapping[str, Any], Said], list[Column]]
    blind: Callable[[Mapping[str, Any]], dict[str, Said]]
    protocols: Callable[[Mapping[str, Any]], Sequence[Protocol]]
    items: Callable[[Mapping[str, Any]], list[Item]]
    silent: Callable[[Any], bool] = lambda question: False


SOURCES = {
    "ovo_bench": Source(
        ovo.read_rows, ovo.read_said, ovo.columns, ovo.blind, lambda questions: ovo.PROTOCOLS, ovo.items,
        silent=lambda row: row.task in ovo.FORWARD,
    ),
    "streamingbench_po": Source(
        streaming.read_po, partial(streaming.read_said, dialogs=True), streaming.po_columns, streaming.blind_po,
        lambda questions: streaming.PO_PROTOCOLS, streaming.items,
    ),
    "streamingbench_mcq": Source(
        streaming.read_mcq, partial(streaming.read_said, dialogs=False), streaming.mcq_columns, streaming.blind_mcq,
        streaming.mcq_protocols, streaming.items,
    ),
    "proactivevideoqa": Source(
        videoqa.read_questions, lambda path, questions, model, reply_time: videoqa.read_said(path, questions, reply_time),
        partial(videoqa.columns, score=lambda *what: 0), videoqa.blind, lambda questions: videoqa.PROTOCOLS, videoqa.items,
        silent=lambda question: True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Moments:
    """When something should be said to a question: it is asked at `start`, its stream ends at `end`; windows: (from, best time, to) of each
    true answer; words: the question's own."""

    start: float
    end: float
    windows: tuple[tuple[float, float, float], ...]
    words: str


def moments(benchmark: str, annotations: str | Path) -> dict[str, Moments]:
    """The moments of every question of a benchmark with replies in time. Raises UserError for the multiple choice, which has none."""
    if benchmark not in SOURCES or benchmark == "streamingbench_mcq":
        raise UserError(f"{benchmark} has no times at which to speak; choose ovo_bench, streamingbench_po or proactivevideoqa.")
    questions = SOURCES[benchmark].read(annotations)
    if benchmark == "ovo_bench":
        forward = {key: row for key, row in questions.items() if row.task in ovo.FORWARD}
        return {k: Moments(r.start, r.end, tuple(around(time) for time in r.times), r.question) for k, r in forward.items()}
    if benchmark == "streamingbench_po":
        return {k: Moments(q.start, q.truth + LATEST, (around(q.truth),), q.question) for k, q in questions.items()}
    return {
        k: Moments(q.queries[0][0], q.duration, tuple((s.start, s.start, s.reply_end) for s in q.spans), q.queries[0][1])
        for k, q in questions.items() if q.queries
    }  # fmt: skip


@dataclass(kw_only=True)
class Proactive(Benchmark):
    source: Source
    questions: Mapping[str, Any]  # all of the annotations
    model_name: str | None
    reply_time: str
    judge_replies: str | None
    judge: JudgeSettings

    def score(self, path: Path, fusion: Fusion = RELEVANCE, trained_on: Set[str] = frozenset(), progress: bool = False) -> Scored:
        found = self.source.said(path, self.questions, self.model_name, self.reply_time)
        asked = {key: self.questions[key] for key in self.chosen}
        answered = [key for key in asked if key in found.polled or key in found.pushed]
        if not answered:
            raise UserError(f"{path} holds no answer to any of the {len(asked)} selected questions; check --video_ids and --limit.")
        silent = [key for key, one in asked.items() if found.pushed and key not in found.pushed and self.source.silent(one)]
        found.pushed.update({key: [] for key in silent})
        columns, missing = self._columns(path, asked, found)
        wanted = {protocol.name for protocol in self.protocols}
        columns = [column for column in columns if column.protocol in wanted]
        if not columns:
            raise UserError(f"{path} does not hold what {', '.join(wanted)} needs; leave out --protocols to see what it allows.")
        protocols = [p.selected([c.metric for c in columns if c.protocol == p.name]) for p in self.protocols]
        protocols = [protocol for protocol in protocols if protocol.metrics]
        rows = {name: self._blind(asked, said, found, {p.name for p in protocols}) for name, said in self.source.blind(asked).items()}
        forward_alone = self.source is SOURCES["ovo_bench"] and not found.polled  # a pushed file has nothing to say of the other rows
        skipped = {} if forward_alone else {k: "no prediction" for k in asked if k not in found.polled and k not in found.pushed}
        seen = [key for key in answered if key in found.trained_on or key in trained_on]
        notes = [*found.notes, f"no prediction, counted as silent: {table.named_list(silent)}"] if silent else found.notes
        if any(protocol.name in videoqa.NAMES.values() for protocol in protocols):
            notes = [*notes, BLIND_PAUC]
        extra: dict[str, Any] = {"notes": notes} if notes else {}
        if (clock := found.clock.summary()) is not None:
            extra["clock"] = clock
        return Scored(
            str(path), protocols, columns, len(answered), skipped, [], seen, [],
            {name: columns for name, columns in rows.items() if columns}, missing, extra,
        )  # fmt: skip

    def _columns(self, path: Path, asked: Mapping[str, Any], found: Said) -> tuple[list[Column], dict[str, str]]:
        if self.source is not SOURCES["proactivevideoqa"]:
            return self.source.columns(asked, found), {}
        if self.judge_replies:
            score = videoqa.read_replies(Path(self.judge_replies), asked)
        elif self.judge.judge:
            pairs = videoqa.pairs(asked, found)
            grades = grade_pairs(list(pairs.values()), self.judge)

            def score(key: str, turn: int, answer: str, said: str) -> int | None:
                grade = grades[pairs[key, turn, said]]
                return grade - 1 if grade in (1, 2, 3) else None
        else:
            return videoqa.columns(asked, found, None), {"PAUC": "needs a judge of the replies: give --judge_replies FILE, or --judge."}
        return videoqa.columns(asked, found, score), {}

    def _blind(self, asked: Mapping[str, Any], said: Said, found: Said, protocols: set[str]) -> list[Column]:
        """A blind row over the questions that the prediction answers, in the way in which it does."""
        polled = {key: value for key, value in said.polled.items() if key in found.polled}
        pushed = {key: value for key, value in said.pushed.items() if key in found.pushed}
        columns = self.source.columns(asked, Said(polled, pushed)) if polled or pushed else []
        return [column for column in columns if column.protocol in protocols]

    def clock(self, path: Path) -> dict[str, Any] | None:
        """As it was read with the replies: the files have many layouts."""
        return None

    def remarks(self, scored: Scored | None) -> list[str]:
        times = {"frame": "as the file has it", "interval_end": "one step after the file's, the end of what was seen"}
        lines = [f"time of a reply: {times[self.reply_time]} (--reply_time {self.reply_time}); {ECHO}"]
        if scored:
            lines += scored.extra.get("notes", [])
            mains = {c.protocol: c for c in scored.columns if c.metric == MAIN.get(c.protocol) or c.metric in MAINS}
            if len(mains) > 1:
                shown = ", ".join(f"{name} {table.shown(column.mean, column.mean > 1)}" for name, column in mains.items())
                lines.append(f"one file, {len(mains)} names: {shown}")
        return lines


def load(
    benchmark: str,
    annotations: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    video_ids: Sequence[str] | None = None,
    limit: int | None = None,
    model_name: str | None = None,
    reply_time: str = "frame",
    judge_replies: str | None = None,
    **judge: Any,
) -> Proactive:
    """Read the annotations and select questions: by id, the first `limit`. judge: fields of JudgeSettings."""
    if reply_time not in REPLY_TIMES:
        raise UserError(f"--reply_time {reply_time} is none of {', '.join(REPLY_TIMES)}.")
    source = SOURCES[benchmark]
    path = Path(annotations) if annotations is not None else TASKS[benchmark].folder
    if not path.exists():
        raise UserError(f"annotations {path} do not exist; `python -m aha.data.prepare {benchmark}` says where they come from.")
    questions = source.read(path)
    known = source.protocols(questions)
    return Proactive(
        annotations=str(path), chosen=select(list(questions), str(path), video_ids, limit), protocols=select_protocols(known, protocols),
        source=source, questions=questions, model_name=model_name, reply_time=reply_time, judge_replies=judge_replies,
        judge=JudgeSettings(**judge),
    )  # fmt: skip


def evaluate(benchmark: str, predictions: str | Path, annotations: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Score a prediction file or folder; returns the metrics file's content. options: the other flags of the command, and
    aha.eval.command.evaluate's. Raises UserError for bad input."""
    if benchmark not in TASKS:
        raise UserError(f"--benchmark {benchmark} is none of {', '.join(TASKS)}.")
    return TASKS[benchmark].evaluate(predictions, annotations=annotations, benchmark=benchmark, **options)


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--benchmark", required=True, choices=tuple(SOURCES), help="whose protocols")
    p.add_argument("--model_name", metavar="NAME", help="the model to be scored, in files that hold several (default: the only one)")
    p.add_argument(
        "--reply_time", choices=REPLY_TIMES, default="frame",
        help="frame: as the file has it, k/fps in ours; interval_end: one step of its frame_fps later (default %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--judge_replies", metavar="FILE", help="proactivevideoqa: kept replies {question_id, turn, ground_truth, predicted, judge}"
    )
    add_judge_flags(p)


def _task(data: DataSet, short: str, protocols: Sequence[Protocol], headlines: Sequence[Headline]) -> Task:
    source = SOURCES[data.name]

    def items(root: str | Path, split: str | None = None, fold: int | None = None) -> list[Item]:
        """The questions of the data set's folder; there is one split."""
        return source.items(source.read(root))

    return Task(
        data, short=short, items=items, load=partial(_load_for, data.name), add_flags=add_flags, frame_fps=1.0, protocols=tuple(protocols),
        headlines=tuple(headlines), rows=ROWS, unit="questions",
    )  # fmt: skip


def _load_for(name: str, benchmark: str | None = None, **flags: Any) -> Proactive:
    return load(benchmark or name, **flags)


STREAMINGBENCH = "https://huggingface.co/datasets/mjuicem/StreamingBench"
TASKS = {
    task.name: task
    for task in (
        _task(
            DataSet(
                "ovo_bench", "OVO-Bench (CVPR 2025)", "ovo_bench", (File(ovo.FILE, "https://github.com/JoeLeelyf/OVO-Bench"),),
                "src_videos", "https://huggingface.co/datasets/JoeLeelyf/OVO-Bench", "644 videos, 1,640 rows", "see the data set's page",
                "evaluation: answering online, and when (aha.eval.proactive)",
            ),
            "OVO-Bench", ovo.PROTOCOLS,
            [Headline("ovo_avg3", "average", "mean of three parts"), Headline(ovo.PUSH, "average_f1", "F1 within 2 s, pushed")],
        ),
        _task(
            DataSet(
                "streamingbench_po", "StreamingBench, proactive output (2411.03628)", "streamingbench",
                (File(streaming.PO_FILES[0], "https://github.com/THUNLP-MT/StreamingBench"),),
                "videos", STREAMINGBENCH, "250 questions", "see the data set's page", "evaluation: when to speak (aha.eval.proactive)",
            ),
            "StreamingBench, proactive output", streaming.PO_PROTOCOLS,
            [Headline("streamingbench_po_push", "time_accuracy", "time right, pushed")],
        ),
        _task(
            DataSet(
                "streamingbench_mcq", "StreamingBench, multiple choice (2411.03628)", "streamingbench",
                (File(streaming.MCQ_FILES[0], "https://github.com/THUNLP-MT/StreamingBench"),),
                "videos", STREAMINGBENCH, "4,000 questions and more", "see the data set's page",
                "evaluation: questions in real time (aha.eval.proactive)",
            ),
            "StreamingBench, multiple choice", streaming.mcq_protocols({}),
            [Headline("streamingbench_mcq_first_character", "micro", "accuracy")],
        ),
        _task(
            DataSet(
                "proactivevideoqa", "ProactiveVideoQA (2507.09313)", "proactivevideoqa",
                tuple(
                    File(f"{subset}/anno.json", "https://huggingface.co/datasets/wangyueqian/ProactiveVideoQA")
                    for subset in videoqa.SUBSETS
                ),
                ".", "the same page, into SUBSET/videos", "1,377 videos", "see the data set's page",
                "evaluation: answers at the right time (aha.eval.proactive)",
            ),
            "ProactiveVideoQA", videoqa.PROTOCOLS, [Headline(videoqa.NAMES[0.5], "WEB", "PAUC, WEB")],
        ),
    )
}  # fmt: skip


def main(argv: list[str]) -> None:
    named = [name for name in TASKS if name in argv or f"--benchmark={name}" in argv]
    run(TASKS[named[0] if named else "ovo_bench"], __doc__, "aha.eval.proactive", argv)  # a wrong or missing name is said by the parser


if __name__ == "__main__":
    run_command(main)
