"""OVO-Bench (CVPR 2025): its rows, its result files, and all of its averages by name. Definitions: test/data/proactive/README.md.

Averages are percent. Every row has marks for its responses: one (backward, real time), or one for each test_info (forward).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aha.errors import UserError
from aha.eval.proactive_files import (
    Said,
    add_pushed,
    entries,
    files_below,
    is_answers,
    is_pushed,
    name_of,
    read_document,
    said,
    seconds,
    whole,
)  # fmt: skip
from aha.eval.task import Item
from aha.metrics.proactive import TIMING, TOLERANCE, around, hits, timing
from aha.metrics.proactive_answers import FORWARD, LETTERS, OVO_RULES
from aha.results.layout import Protocol
from aha.results.tree import Column, Pooled

FILE = "ovo_bench_new.json"
PARTS = {
    "backward": ("EPM", "ASI", "HLD"), "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), "forward": FORWARD,
}  # fmt: skip
TASKS = tuple(task for tasks in PARTS.values() for task in tasks)
PART_OF = {task: part for part, tasks in PARTS.items() for task in tasks}
PUSH = "ovo_forward_push_f1_2s"
ALL = ("average", *PARTS, *TASKS)
MAIN = ALL[:4]
_PERCENT = (*ALL, "ovo_rt_bw_avg2", "ovo_avg3_micro", "ovo_avg12")


def _protocol(name: str, about: str, metrics: Sequence[str] = ALL) -> Protocol:
    return Protocol(name, f"{about}; percent", tuple(metrics), _PERCENT)


PROTOCOLS = (
    _protocol("ovo_avg3", "mean of the three parts (OVO-Bench's score.py, second edition)"),
    _protocol(
        "ovo_rt_bw_avg2", "(backward + real time) / 2 (SimpleStream, its issue 1)", ("average", "backward", "realtime", *TASKS[:9])
    ),
    _protocol("ovo_avg12", "mean of the tasks that are there, 12 in all (first edition, issue 7; VLMEvalKit)"),
    _protocol("ovo_avg3_missing_is_zero", "(backward + real time + 0) / 3 (SimpleStream's script without forward results)", MAIN[:3]),
    _protocol("ovo_forward_by_question", "forward tasks over questions, not over responses (paper, supplement 6)"),
    _protocol(
        "ovo_forward_answered_only", "forward without the responses that are null (lmms-eval); average = forward",
        ("average", "forward", *FORWARD),
    ),
    _protocol("ovo_word_rule", "lone letters, YES and NO anywhere (SimpleStream's inference script)", (*ALL, "ovo_rt_bw_avg2")),
    _protocol(
        "ovo_patterns_rule", "letters by patterns, parts are micro averages (VideoChat3's VLMEvalKit)",
        (*ALL, "ovo_avg3_micro", "ovo_avg12"),
    ),
    Protocol(
        PUSH, "OVO-Timing: replies within 2 s of the true times, F1 of mean recall and precision (Em-Garde, VideoChat3); content is not "
        "marked; early, late, never: shares of the true times; duplicates, false alarms: replies a question",
        tuple(f"{who}_{what}" for who in ("average", *FORWARD) for what in ("f1", "recall", "precision")) + TIMING,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of the annotations. truths: letter, counts or 0/1 of its responses; times: true times of a pushed forward row; start, end:
    when its stream begins and ends."""

    key: str
    task: str
    video: str
    question: str
    truths: tuple[Any, ...]
    options: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    start: float = 0.0
    end: float = 0.0


def read_rows(path: str | Path) -> dict[str, Row]:
    """The rows by id. Raises UserError naming file, element and field."""
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    rows: dict[str, Row] = {}
    for i, entry in enumerate(entries(read_document(path, "OVO-Bench annotations"), str(path), "its content")):
        where = f"{path}, element {i}"
        key = name_of(entry, where)
        if key in rows:
            raise UserError(f"{where}: row {key} is listed twice; ids must differ.")
        task = entry.get("task")
        if task not in TASKS:
            raise UserError(f"{where}: task is {task!r}, none of {', '.join(TASKS)}; is this {FILE}?")
        rows[key] = _forward(entry, key, task, where) if task in FORWARD else _choice(entry, key, task, where)
    if not rows:
        raise UserError(f"{path} holds no rows; is this {FILE}?")
    return rows


def _choice(entry: Mapping[str, Any], key: str, task: str, where: str) -> Row:
    options = entry.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise UserError(f"{where}: options is no list of 2 to {len(LETTERS)} answers; repair the entry.")
    gt = whole(entry.get("gt"), where, "gt")
    if not 0 <= gt < len(options):
        raise UserError(f"{where}: gt is {gt}, no index of its {len(options)} options; repair the entry.")
    at = seconds(entry.get("realtime"), where, "realtime")
    texts = tuple(map(str, options))
    return Row(key, task, str(entry.get("video", "")), str(entry.get("question", "")), (LETTERS[gt],), texts, start=at, end=at)


def _forward(entry: Mapping[str, Any], key: str, task: str, where: str) -> Row:
    tests = entries(entry.get("test_info"), where, "test_info")
    if not tests:
        raise UserError(f"{where}: test_info is empty; repair the entry.")
    field = "count" if task == "REC" else "type"
    truths = tuple(whole(test.get(field), f"{where}, test_info {k}", field) for k, test in enumerate(tests))
    at = tuple(seconds(test.get("realtime"), f"{where}, test_info {k}", "realtime") for k, test in enumerate(tests))
    if task == "CRR":
        times: tuple[float, ...] = (seconds(entry.get("clue_time"), where, "clue_time"),)
        start, question = seconds(entry.get("ask_time"), where, "ask_time"), str(entry.get("question", ""))
    else:
        name = "start_times" if task == "REC" else "start_time"
        listed = entry.get(name)
        if not isinstance(listed, list):
            raise UserError(f"{where}: {name} is no list of seconds; repair the entry.")
        times = tuple(seconds(time, where, name) + TOLERANCE for time in listed)
        start = 0.0
        question = f"Count: {entry.get('activity', '')}" if task == "REC" else f"Describe the steps: {entry.get('tutorial', '')}"
    return Row(key, task, str(entry.get("video", "")), question, truths, (), times, start, at[-1])


# ---------------------------------------------------------------- what models said


def read_said(path: Path, rows: Mapping[str, Row], model_name: str | None, reply_time: str) -> Said:
    """polled: row -> its responses. Raises UserError."""
    found = Said()
    for file in files_below(path, "predictions"):
        document = read_document(file, "prediction file")
        if is_pushed(document):
            add_pushed(found, entries(document, str(file), "its content"), str(file), rows, reply_time)
        elif (listed := _polled_rows(document)) is not None:
            for i, entry in enumerate(entries(listed, str(file), "its rows")):
                _add_polled(found, entry, f"{file}, element {i}", rows)
        elif not path.is_dir():
            raise UserError(
                f"{file} is no OVO-Bench output: expected {{backward, realtime, forward}}, or lines with response, responses or "
                "model_response_list."
            )
    return found


def _polled_rows(document: Any) -> Any:
    if isinstance(document, dict) and not document.keys().isdisjoint(PARTS):
        parts = [document.get(part) for part in PARTS]
        return [entry for part in parts if part is not None for entry in (part if isinstance(part, list) else [part])]
    rows = isinstance(document, list) and any(isinstance(e, dict) and "test_info" in e for e in document)
    return document if rows or is_answers(document) else None


def _add_polled(found: Said, entry: Mapping[str, Any], where: str, rows: Mapping[str, Row]) -> None:
    key = name_of(entry, where)
    if key not in rows:
        raise UserError(f"{where}: row {key} is not in the annotations; check that both are of one data set.")
    row = rows[key]
    if row.task not in FORWARD:
        found.add("polled", key, [said(entry.get("response"), where)], where)
        return
    if "responses" in entry:
        listed = entry["responses"]
        if not isinstance(listed, list):
            raise UserError(f"{where}: responses is no list, one for each test_info; repair the entry.")
        answers = [said(value, where) for value in listed]
    else:
        answers = [said(test.get("response"), where) for test in entries(entry.get("test_info"), where, "test_info")]
    if len(answers) != len(row.truths):
        raise UserError(f"{where}: row {key} has {len(answers)} responses where its annotation asks {len(row.truths)} times.")
    found.add("polled", key, answers, where)


# ---------------------------------------------------------------- numbers


def columns(rows: Mapping[str, Row], found: Said) -> list[Column]:
    """Every protocol that the answers allow."""
    polled = {key: rows[key] for key in rows if key in found.polled}
    pushed = {key: rows[key] for key in rows if key in found.pushed and rows[key].task in FORWARD}
    return [*(_averages(polled, found.polled) if polled else []), *(_push(pushed, found.pushed) if pushed else [])]


def _averages(rows: Mapping[str, Row], answers: Mapping[str, Sequence[str | None]]) -> list[Column]:
    ids = list(rows)
    parts = {PART_OF[row.task] for row in rows.values()}
    marks = {
        name: {
            key: np.array([rule(row.task, truth, reply, row.options) for truth, reply in zip(row.truths, answers[key])])
            for key, row in rows.items()
        }
        for name, rule in OVO_RULES.items()
    }
    counts = {key: np.ones(len(row.truths)) for key, row in rows.items()}
    by_row = {key: np.array([values.mean()]) if rows[key].task in FORWARD else values for key, values in marks["official"].items()}
    answered = {key: np.array([reply is not None for reply in answers[key]], float) for key in rows}
    there = [task for task in TASKS if any(row.task == task for row in rows.values())]

    def make(protocol: str, marked: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], metrics: Mapping[str, _Combine]) -> Any:
        sums = np.zeros((len(ids), 2 * len(TASKS)))
        for k, key in enumerate(ids):
            task = TASKS.index(rows[key].task)
            sums[k, task], sums[k, len(TASKS) + task] = (marked[key] * weights[key]).sum(), weights[key].sum()
        for metric, (combine, tasks) in metrics.items():
            with np.errstate(invalid="ignore"):
                own = 100 * sums[:, : len(TASKS)].sum(axis=1) / sums[:, len(TASKS) :].sum(axis=1)
            values = np.where([rows[key].task in tasks for key in ids], own, np.nan)
            yield Column(protocol, metric, "", ids, values, pooled=Pooled(sums, combine))

    tasks = {task: _task(task) for task in there}
    part = {name: _part(name) for name in PARTS if name in parts}
    micro = {name: _micro(name) for name in PARTS if name in parts}
    three, two = parts == set(PARTS), {"backward", "realtime"} <= parts
    found: list[Column] = []

    def add(name: str, metrics: Mapping[str, _Combine], marked: Mapping[str, Any] = marks["official"], weights: Any = counts) -> None:
        order = next(protocol.metrics for protocol in PROTOCOLS if protocol.name == name)
        found.extend(make(name, marked, weights, {metric: metrics[metric] for metric in order if metric in metrics}))

    if three:
        add("ovo_avg3", {"average": _mean(part), **part, **tasks})
    if two:
        both = {name: part[name] for name in ("backward", "realtime")}
        add("ovo_rt_bw_avg2", {"average": _mean(both), **both, **tasks})
    if three:
        add("ovo_avg12", {"average": _mean(tasks), **part, **tasks})
    if two:
        zero = (lambda sums: np.sum([combine(sums) for combine, _ in both.values()], axis=0) / 3, _mean(both)[1])
        add("ovo_avg3_missing_is_zero", {"average": zero, **both})
    average = {"average": _mean(part)} if three else {}
    if "forward" in parts:
        ones = {key: np.ones(len(values)) for key, values in by_row.items()}
        add("ovo_forward_by_question", {**average, **part, **tasks}, by_row, ones)
        strict = {task: tasks[task] for task in there if task in FORWARD}
        forward = _mean(strict, all_of_them=True)
        add("ovo_forward_answered_only", {"average": forward, "forward": forward, **strict}, weights=answered)
    again = {"ovo_rt_bw_avg2": _mean(both)} if two else {}
    add("ovo_word_rule", {**average, **part, **tasks, **again}, marks["word"])
    micros = {"average": _mean(micro), "ovo_avg3_micro": _mean(micro), "ovo_avg12": _mean(tasks)} if three else {}
    add("ovo_patterns_rule", {**micros, **micro, **tasks}, marks["patterns"])
    return found


_Combine = tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]  # sums of marks and counts by task [B, 24] -> [B]; which tasks


def _task(task: str) -> _Combine:
    k = TASKS.index(task)
    return lambda sums: 100 * sums[:, k] / sums[:, len(TASKS) + k], (task,)


def _part(part: str) -> _Combine:
    """Mean of its tasks that occur."""
    return _mean({task: _task(task) for task in PARTS[part]})


def _micro(part: str) -> _Combine:
    k = [TASKS.index(task) for task in PARTS[part]]
    return lambda sums: 100 * sums[:, k].sum(axis=1) / sums[:, len(TASKS) + np.array(k)].sum(axis=1), PARTS[part]


def _mean(parts: Mapping[str, _Combine], all_of_them: bool = False) -> _Combine:
    """all_of_them: undefined where one of them is."""

    def combine(sums: np.ndarray) -> np.ndarray:
        values = np.stack([combine(sums) for combine, _ in parts.values()])
        there = np.ones(values.shape, bool) if all_of_them else ~np.isnan(values)
        return np.where(there, values, 0.0).sum(axis=0) / there.sum(axis=0)

    return combine, tuple(dict.fromkeys(task for _, tasks in parts.values() for task in tasks))


def _push(rows: Mapping[str, Row], replies: Mapping[str, Sequence[tuple[float, str]]]) -> list[Column]:
    ids = list(rows)
    sums, beside = np.zeros((len(ids), 3 * len(FORWARD))), []  # recall, precision, rows of each task
    for k, (key, row) in enumerate(rows.items()):
        times = [time for time, _ in replies[key]]
        met, task = hits(row.times, times), FORWARD.index(row.task)
        sums[k, task :: len(FORWARD)] = met / len(row.times) if row.times else 0.0, met / len(times) if times else 0.0, 1.0
        beside.append(timing([around(time) for time in row.times], times))
    of_row = {"recall": sums[:, :3].sum(axis=1), "precision": sums[:, 3:6].sum(axis=1)}
    both = of_row["recall"] + of_row["precision"]
    of_row["f1"] = np.divide(2 * of_row["recall"] * of_row["precision"], both, out=np.zeros(len(ids)), where=both > 0)

    def value(what: str, task: int) -> Callable[[np.ndarray], np.ndarray]:
        def combine(sums: np.ndarray) -> np.ndarray:
            recall, precision = sums[:, task] / sums[:, 6 + task], sums[:, 3 + task] / sums[:, 6 + task]
            if what == "f1":
                return np.where(recall + precision == 0, 0.0, 2 * recall * precision / (recall + precision))
            return recall if what == "recall" else precision

        return combine

    def average(what: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: sum(np.nan_to_num(value(what, task)(sums)) for task in range(3)) / 3  # a task without rows counts 0

    found = []
    for who in ("average", *FORWARD):
        inside = np.array([who in ("average", row.task) for row in rows.values()])
        for what in ("f1", "recall", "precision"):
            combine = average(what) if who == "average" else value(what, FORWARD.index(who))
            if inside.any():
                found.append(Column(PUSH, f"{who}_{what}", "", ids, np.where(inside, of_row[what], np.nan), pooled=Pooled(sums, combine)))
    found += [Column(PUSH, name, "", ids, np.array([row[name] for row in beside])) for name in TIMING]
    return found


# ---------------------------------------------------------------- models that look at no frame


def blind(rows: Mapping[str, Row]) -> dict[str, Said]:
    """Row name -> what it says to everything."""

    def answers(of: Callable[[Row], str | None]) -> dict[str, list[str | None]]:
        return {key: [of(row)] * len(row.truths) for key, row in rows.items()}

    def pushes(of: Callable[[Row], list[tuple[float, str]]]) -> dict[str, list[tuple[float, str]]]:
        return {key: of(row) for key, row in rows.items() if row.task in FORWARD}

    def every(row: Row, step: float, text: str) -> list[tuple[float, str]]:
        return [(row.start + step * k, text) for k in range(1, int((row.end - row.start) / step) + 1)]

    return {
        "silence": Said(answers(lambda row: None), pushes(lambda row: [])),
        "always_yes": Said(answers(lambda row: "1" if row.task == "REC" else "Yes"), pushes(lambda row: every(row, 1.0, "Yes"))),
        "abcde": Said(answers(lambda row: LETTERS), pushes(lambda row: [(row.start + 1.0, LETTERS)])),
        "every_5_s": Said({}, pushes(lambda row: every(row, 5.0, row.question))),
        "echo_after_6_s": Said(answers(lambda row: row.question), pushes(lambda row: [(row.start + 6.0, row.question)])),
    }


def items(rows: Mapping[str, Row]) -> list[Item]:
    """What is asked of which video: forward rows from the start of their stream, the others at their time."""
    return [Item(key, row.video, ((row.start, row.question),), None, row.task, extra={"question_id": key}) for key, row in rows.items()]
