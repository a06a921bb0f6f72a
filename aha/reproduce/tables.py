"""The tables, as data. Commands stand nowhere else: the run executes these, instructions/reproduce.md prints these (a test compares them).

    python -m aha.reproduce --commands              every command, table by table, as the document has them
    python -m aha.reproduce --commands --tables 9   of one

A table is made of prediction files (Score) and of numbers of them (Evaluation), which may be shared with other tables. In options, {data}
is the folder of the data sets, {out} the run's; {judge} and {judge_model} are those of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aha.core import fusion
from aha.errors import UserError
from aha.eval import load_task

SCORING = {  # how the published runs sample and speak: those of scripts/inference/*.sh (a test compares them)
    "tvsum": "--frame_fps 1",
    "hisum": "--frame_fps 1",
    "charades": "--frame_fps 2 --max_num_frames 400",
    "magqa": "--frame_fps 2 --max_num_frames 400 --stream_end_prob_threshold 0.5 --score_heads informative_score,relevance_score "
    "--remove_assistant_turns",
    "youcook2": "--frame_fps 0.5 --max_num_frames 200 --stream_end_score_sum_threshold 2 --score_heads informative_score "
    "--remove_assistant_turns",
}
EVALUATING = {  # what the evaluation of a data set needs beside the prediction file
    "hisum": "--annotations {data}/hisum/annotations/mr_hisum.h5 --split {data}/hisum/annotations/mr_hisum_split.json "
    "--metadata {data}/hisum/annotations/metadata.csv",
    "magqa": "--judge {judge} --judge_model {judge_model} --judge_cache {out}/judgments.jsonl",
}
SIZES = {  # data set -> (items scored, their frames in all, how that is known); for estimates before the data are there
    "tvsum": (50, 12_608, "50 videos, 12,583 s by the annotations"),
    "hisum": (2_000, 404_000, "2,000 test videos of 202 s on average"),
    "charades": (3_720, 227_000, "3,720 test questions over videos of 30 s on average"),
    "magqa": (2_000, 70_000, "2,000 test questions over videos of 17 s on average"),
    "youcook2": (457, 73_000, "457 val videos of 317 s on average"),
}
ZERO_SHOT, ADAPTED = fusion.ZERO_SHOT.flags, fusion.ADAPTED.flags
FEATURES = "--feature_cache {out}/features"

Metric = tuple[str, str, str]  # protocol, metric, subset ("" where the protocol has none)


@dataclass(frozen=True)
class Score:
    """A prediction file, {out}/predictions/NAME.json. options: beside those of SCORING."""

    name: str
    dataset: str
    options: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Numbers of a prediction file, {out}/numbers/NAME.json, and the published rows that may stand beside them.

    row: how our row is called. beside: methods in aha/eval/published_rows. care: what a comparable row still differs in. grid: the command
    is the grid search, whose held-out mean is shown. needs_uncertainty: the row is about that head. after: an evaluation that goes first.
    """

    name: str
    row: str
    of: Score
    options: str = ""
    beside: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()  # default: the table's
    care: str = ""
    grid: bool = False
    needs_uncertainty: bool = False
    after: str = ""


@dataclass(frozen=True)
class Table:
    """also: other tables of the paper that it holds. published: the file with the rows; metrics: those shown of every row."""

    id: str
    title: str
    published: str
    metrics: tuple[Metric, ...]
    evaluations: tuple[Evaluation, ...]
    also: tuple[str, ...] = ()
    note: str = ""

    @property
    def scores(self) -> list[Score]:
        return list(dict.fromkeys(evaluation.of for evaluation in self.evaluations))


AHA = tuple(("aha_1fps_mean", metric, "") for metric in ("top5", "kendall", "spearman"))
FIELD: tuple[Metric, ...] = (("hd_top5", "top5_map", "val10"), ("corr_full", "kendall", ""), ("corr_full", "spearman", ""))
HIGHLIGHTERS = ("UMT-S", "UniVTG", "QD-DETR", "TR-DETR, video and audio", "TR-DETR, video", "one human")

TVSUM = Score("tvsum", "tvsum", FEATURES)
RELEASED = Score("tvsum_released", "tvsum", "--released")
HISUM = Score("hisum", "hisum")
CHARADES = Score("charades", "charades")
YOUCOOK2 = Score("youcook2", "youcook2")
MAGQA_05 = Score("magqa_t05", "magqa")
MAGQA_03 = Score("magqa_t03", "magqa", "--stream_end_prob_threshold 0.3")
SINK = Score("cache_sink", "tvsum", f"--cache sink --window 2048 --sink_tokens 32 {FEATURES}")


def _cached(kind: str, name: str, method: str) -> Evaluation:
    score = SINK if kind == "sink" else Score(f"cache_{kind}", "tvsum", f"--cache {kind} --window 2048 {FEATURES}")
    return Evaluation(f"cache_{kind}", name, score, ADAPTED, (f"Aha, cache {method}",), care="its cache cannot be set in the release")


def _window(sinks: int, window: int) -> Evaluation:
    name = f"sink_{sinks}_{window}"
    options = f"--cache sink --window {window} --sink_tokens {sinks} {FEATURES}"
    score = SINK if (sinks, window) == (32, 2048) else Score(name, "tvsum", options)
    method = f"Aha, {sinks} sinks, window {window}"
    return Evaluation(name, f"{sinks} sinks, window {window}", score, ADAPTED, (method,), care="its cache cannot be set in the release")


def _corrupted(kind: str, method: str) -> Evaluation:
    score = Score(f"corrupt_{kind}", "tvsum", f"--corrupt {kind} --corrupt_ratio 0.2 --seed 0")
    care = "other seconds are hit, by our implementations of the same ideas"
    return Evaluation(f"corrupt_{kind}", f"{method}, 20% of the seconds", score, ADAPTED, (f"Aha, corruption {method}",), care=care)


def _asked(style: str, method: str, care: str) -> Evaluation:
    score = Score(f"prompt_{style}", "tvsum", f"--prompt_style {style} --seed 0 {FEATURES}")
    return Evaluation(f"prompt_{style}", f"prompt {style}", score, ADAPTED, (method,), care=care)


def _without(head: str, weights: str, needs_uncertainty: bool = False) -> Evaluation:
    care = "the paper does not say whether the other weights were tuned again"
    name, method = f"without_{head}", f"Aha, without {head}"
    return Evaluation(name, f"without {head}", TVSUM, weights, (method,), care=care, needs_uncertainty=needs_uncertainty)


ZERO_SHOT_CARE = "scored in the order of training, not of the released code"
ADAPTED_CARE = "the published weights were tuned on these videos"
TABLES = (
    Table(
        "1", "TVSum", "tvsum", AHA,
        (
            Evaluation("zero_shot", "zero-shot weights", TVSUM, ZERO_SHOT, ("Aha, zero-shot",), care=ZERO_SHOT_CARE),
            Evaluation("zero_shot_released", "zero-shot weights, released order", RELEASED, ZERO_SHOT, ("Aha, zero-shot",)),
            Evaluation("relevance", "relevance alone", TVSUM, "", HIGHLIGHTERS, (*AHA, *FIELD)),
            Evaluation("grid", "weights tuned on the other folds, held-out mean", TVSUM, grid=True),
            Evaluation("tuned_on_test", "weights tuned on these videos (no result)", TVSUM, "--weights {out}/numbers/grid.json",
                       ("Aha, domain-adapted",), after="grid"),
        ),
        ("7", "11", "12"), "top5 has a high floor: random scores get 0.595. Read kendall and spearman beside it.",
    ),
    Table(
        "2", "Mr.HiSum", "hisum",
        (("official", "map50", ""), ("official", "map15", ""), ("aha_shifted_index", "map50", ""), ("aha_shifted_index", "map15", "")),
        (Evaluation("hisum", "relevance alone", HISUM, "", ("SL-module", "iPTNet", "DSNet", "PGL-SUM", "Aha")),),
        note="The official protocol and Aha's (seconds, prediction i against label i-1) are not comparable with each other.",
    ),
    Table(
        "3", "TVSum, caches", "tvsum_ablations", AHA,
        (
            _cached("dynamic_sink", "dynamic sink", "dynamic sink"), _cached("sink", "standard sink", "standard sink"),
            Evaluation("cache_full", "full", TVSUM, ADAPTED, ("Aha, cache unbounded",), care=ADAPTED_CARE),
            _cached("sliding", "sliding", "sliding"), _cached("static", "static", "static"),
        ),
        ("15",),
    ),
    Table(
        "4", "TVSum, corrupted video", "tvsum_ablations", AHA,
        (
            Evaluation("corrupt_none", "clean", TVSUM, ADAPTED, ("Aha, corruption none",), care=ADAPTED_CARE),
            _corrupted("color_banding", "colour banding"), _corrupted("block_noise", "block noise"),
            _corrupted("quality", "lower quality"), _corrupted("blackout", "blackout"),
        ),
        ("13",),
    ),
    Table(
        "6", "Charades-STA", "charades",
        tuple((f"fixed_threshold_w{w}_t0.50", metric, "") for w in (0, 8) for metric in ("R@0.5", "R@0.7")),
        (Evaluation("charades", "relevance alone", CHARADES, "--smooth_windows 0,8", ("Aha", "Aha, w = 8", "MMDuet", "MMDuet, w = 8")),),
        note="Min-max over the whole video and w = 8 (8 frames on both sides) look ahead.",
    ),
    Table(
        "8", "Shot2Story-MAGQA", "magqa", (("in_span_padded", "in_span_score", ""), ("in_span", "turns", "")),
        (
            Evaluation("magqa_t05", "speaks above 0.5", MAGQA_05, "", ("Aha, t = 0.5",)),
            Evaluation("magqa_t03", "speaks above 0.3", MAGQA_03, "", ("Aha, t = 0.3", "MMDuet, t = 0.3")),
        ),
        note="Grades of different judges or prompts cannot be compared.",
    ),
    Table(
        "9", "YouCook2 dense captioning", "youcook2",
        tuple(("dense_captioning", metric, "") for metric in ("SODA_c_released_code", "CIDER", "F1_Score", "SODA_c")),
        (Evaluation("youcook2", "replies removed", YOUCOOK2, "--first_caption drop", ("MMDuet", "MMDuet, replies removed", "Aha")),),
    ),
    Table(
        "10", "TVSum, prompts", "tvsum_ablations", AHA,
        (
            Evaluation("prompt_specific", "prompt specific", TVSUM, ADAPTED, ("Aha, prompt specific",), care=ADAPTED_CARE),
            _asked("ambiguous", "Aha, prompt ambiguous", "the authors wrote their titles by hand; ours blur the category"),
            _asked("unrelated", "Aha, prompt irrelevant", "the authors wrote their titles by hand; ours are another video's"),
            _asked("none", "Aha, no query", ADAPTED_CARE),
        ),
    ),
    Table(
        "14", "TVSum, sinks and windows", "tvsum_ablations", AHA,
        tuple(_window(*pair) for pair in ((32, 2048), (16, 2048), (32, 1024), (40, 2560), (16, 1024), (16, 512))),
    ),
    Table(
        "heads", "TVSum, what each head is worth", "tvsum_ablations", AHA,
        (
            Evaluation("all_heads", "all heads", TVSUM, ZERO_SHOT),
            _without("informative", "--alpha 0 --beta 1.0 --epsilon -2.9 --uncertainty_threshold 0.3"),
            _without("relevance", "--alpha 0.7 --beta 0 --epsilon -2.9 --uncertainty_threshold 0.3"),
            _without("uncertainty", "--alpha 0.7 --beta 1.0", needs_uncertainty=True),
        ),
    ),
)  # fmt: skip
LEADERBOARD: tuple[tuple[str, str, Metric], ...] = (  # column, evaluation, metric
    ("TVSum top5", "zero_shot", AHA[0]),
    ("TVSum tau", "zero_shot", AHA[1]),
    ("TVSum rho", "zero_shot", AHA[2]),
    ("Mr.HiSum mAP50", "hisum", ("official", "map50", "")),
    ("Mr.HiSum mAP15", "hisum", ("official", "map15", "")),
    ("Charades R@0.5 %", "charades", ("fixed_threshold_w0_t0.50", "R@0.5", "")),
    ("Charades R@0.7 %", "charades", ("fixed_threshold_w0_t0.50", "R@0.7", "")),
    ("MAGQA in span", "magqa_t05", ("in_span_padded", "in_span_score", "")),
    ("YouCook2 SODA_c", "youcook2", ("dense_captioning", "SODA_c", "")),
    ("YouCook2 CIDEr", "youcook2", ("dense_captioning", "CIDER", "")),
    ("YouCook2 F1", "youcook2", ("dense_captioning", "F1_Score", "")),
)


def chosen_tables(text: str | None) -> list[Table]:
    """ "1,9" -> the tables that hold these of the paper, in the list's order; None: all. Raises UserError."""
    names = {name: table for table in TABLES for name in (table.id, *table.also)}
    wanted = [part.strip() for part in text.split(",") if part.strip()] if text is not None else [table.id for table in TABLES]
    if unknown := [name for name in wanted if name not in names]:
        raise UserError(f"--tables {unknown[0]} is none of {', '.join(names)}; separate several by commas.")
    if not wanted:
        raise UserError(f"--tables names none; choose from {', '.join(names)}.")
    return [table for table in TABLES if table in [names[name] for name in wanted]]


@dataclass(frozen=True)
class Run:
    """What a run's commands depend on. folds: of the grid search (fewer where fewer videos are scored); 0: no grid search is possible."""

    model: str = "aha-7b"
    out: str = "outputs/reproduce"
    data: str = "datasets"
    limit: int | None = None
    device: str | None = None
    released: bool = False
    judge: str = "endpoint"
    judge_model: str = "gpt-4o"

    @property
    def folds(self) -> int:
        return 5 if self.limit is None else 0 if self.limit < 2 else min(self.limit, 5)

    def words(self, options: str) -> list[str]:
        return [word.format(data=self.data, out=self.out, judge=self.judge, judge_model=self.judge_model) for word in options.split()]

    def folder(self, dataset: str) -> str:
        return f"{self.data}/{load_task(dataset).data.folder}"

    def predictions(self, score: Score) -> str:
        return f"{self.out}/predictions/{score.name}.json"

    def numbers(self, evaluation: Evaluation) -> str:
        return f"{self.out}/numbers/{evaluation.name}.json"


def score_command(score: Score, run: Run) -> list[str]:
    """The command of a prediction file, without `python`."""
    options = run.words(_merged(SCORING[score.dataset], score.options))
    words = ["-m", "aha.score", "--model", run.model, "--dataset", score.dataset, *options]
    if run.released and "--released" not in words:
        words.append("--released")
    if run.data != Run.data:
        words += ["--data_root", run.folder(score.dataset)]
    words += [] if run.device is None else ["--device", run.device]
    words += [] if run.limit is None else ["--limit", str(run.limit)]
    return [*words, "--output", run.predictions(score)]


def evaluation_command(evaluation: Evaluation, run: Run, uncertainty: bool = True) -> list[str]:
    """The command of an evaluation, without `python`; uncertainty: whether the model has that head (else epsilon is 0)."""
    dataset = evaluation.of.dataset
    options = f"{EVALUATING.get(dataset, '')} {evaluation.options}"
    words = ["-m", f"aha.eval.{'grid_search' if evaluation.grid else dataset}", "--predictions", run.predictions(evaluation.of)]
    if run.data != Run.data and "--annotations" not in options:
        words += ["--annotations", run.folder(dataset)]
    words += run.words(options)
    if not uncertainty:
        words = _without_flags(words, "--epsilon", "--uncertainty_threshold")
    if evaluation.grid:
        words += [] if run.folds == 5 else ["--folds", str(run.folds)]
        words += [] if uncertainty else ["--grid_epsilon", "0", "--grid_uncertainty_threshold", "0"]
    else:
        words.append("--published")
    return [*words, "--output", run.numbers(evaluation)]


def _merged(options: str, more: str) -> str:
    """The options of the published run with those of one row, which win."""
    given = {word for word in more.split() if word.startswith("--")}
    words = options.split()
    return " ".join(_without_flags(words, *given) + more.split())


def _without_flags(words: Sequence[str], *flags: str) -> list[str]:
    return [word for before, word in zip(["", *words], words) if word not in flags and before not in flags]


def commands(table: Table, run: Run) -> str:
    """The lines that make the table, to be copied; the document has them so."""
    lines = [["python", *score_command(score, run)] for score in table.scores]
    lines += [["python", *evaluation_command(evaluation, run)] for evaluation in table.evaluations]
    return "\n".join(" ".join(words) for words in lines) + "\n"
