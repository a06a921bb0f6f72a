"""Figures for papers, each as PNG and PDF (text stays text).

    python -m aha.visualize curves --predictions ours.json --annotations ydata-tvsum50-anno.tsv --output fig/curves
    python -m aha.visualize categories --metrics Ours=ours.json MMDuet=mmduet.json --column corr_full/kendall --output fig/categories
    python -m aha.visualize compare --metrics Ours=ours.json MMDuet=mmduet.json --output fig/table

`--metrics` are files that `python -m aha.eval.*` wrote with --output; a column is PROTOCOL/METRIC, or PROTOCOL/METRIC/SUBSET where the
protocol is reported on several sets of videos. `compare` also writes the table as LaTeX (booktabs).

A annotators, n frames of a video, N scored frames.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aha.core.files import atomic_path, read_json, write_text
from aha.core.predictions import Prediction, read_predictions
from aha.errors import UserError, run_command
from aha.eval.annotations import TVSumVideo, read_tvsum
from aha.results.tree import leaf

COLOURS = ("#1f6feb", "#d1495b", "#2a9d5c", "#8250df", "#e08e0b", "#4b5563")
INK, GREY, BAND = "#1f2937", "#9ca3af", "#fde68a"
# Rows of the "baselines" part of a metrics file, and how they are called in a figure.
BASELINES = {
    "random": "random",
    "human_vs_each_other_human": "one human against each other",
    "mean_annotation_as_predictor": "mean annotation",
    "gtscore_as_predictor": "ground truth score",
}


def save(figure: Figure, output: str | Path) -> list[Path]:
    """Write `output`.png and `output`.pdf."""
    FigureCanvasAgg(figure)
    base = Path(output)
    base = base.with_suffix("") if base.suffix in (".png", ".pdf") else base
    paths = [base.with_name(base.name + suffix) for suffix in (".png", ".pdf")]
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: editable, and accepted by every publisher
        for path in paths:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=200)
    return paths


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


# ---- score curves against annotators ----


def prediction_seconds(prediction: Prediction, video: TVSumVideo) -> np.ndarray:
    """Seconds of each score [N]."""
    fps = video.user_scores.shape[1] / video.length_s
    if prediction.frames is not None:
        return prediction.frames / fps
    if prediction.times is not None:
        return prediction.times
    step = prediction.clip_seconds or video.length_s / len(prediction.scores)
    return np.arange(len(prediction.scores)) * step


def stretched(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores moved and stretched to low..high; a constant sits in the middle."""
    span = float(np.ptp(scores))
    return (scores - scores.min()) / span * (high - low) + low if span > 0 else np.full(len(scores), (low + high) / 2)


def curves_figure(videos: Sequence[TVSumVideo], predictions: Mapping[str, Mapping[str, Prediction]]) -> Figure:
    """One panel a video: every prediction over the annotators' 10th to 90th percentile and their mean. Predictions are stretched to the
    range of the mean: correlations do not see it either."""
    columns = min(2, len(videos))
    rows = math.ceil(len(videos) / columns)
    figure = Figure(figsize=(3.6 * columns, 1.7 * rows + 0.4), layout="constrained")
    for number, video in enumerate(videos, 1):
        axes = figure.add_subplot(rows, columns, number)
        users_An = video.user_scores.astype(np.float64)
        seconds_n = np.arange(users_An.shape[1]) * video.length_s / users_An.shape[1]
        shown = np.unique(np.linspace(0, len(seconds_n) - 1, min(len(seconds_n), 1500)).astype(int))
        low, high = np.percentile(users_An[:, shown], [10, 90], axis=0)
        mean = users_An[:, shown].mean(axis=0)
        axes.fill_between(seconds_n[shown], low, high, color=BAND, lw=0, label="annotators, 10% to 90%")
        axes.plot(seconds_n[shown], mean, color=INK, lw=0.9, label="their mean")
        for colour, (name, entries) in zip(COLOURS, predictions.items()):
            prediction = entries.get(video.video_id)
            if prediction is not None:
                scores = stretched(prediction.scores, float(mean.min()), float(mean.max()))
                axes.step(prediction_seconds(prediction, video), scores, where="post", color=colour, lw=0.9, label=name)
        axes.set_xlim(0, video.length_s)
        axes.set_yticks([1, 2, 3, 4, 5])
        title = video.title if len(video.title) <= 60 else video.title[:59] + "…"
        axes.set_title(f"{video.category}: {title}".replace("$", r"\$"), fontsize=7, loc="left")
        if number > len(videos) - columns:
            axes.set_xlabel("seconds", fontsize=7)
        _clean(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    return figure


# ---- metrics files ----


def read_metrics(named: Sequence[str]) -> dict[str, dict[str, Any]]:
    """NAME=FILE arguments -> metrics by name, in order. Raises UserError."""
    metrics = {}
    for entry in named:
        name, equals, path = entry.partition("=")
        if not equals:
            name, path = Path(entry).stem, entry
        if name in metrics:
            raise UserError(f"--metrics names {name} twice; give each file a name of its own (NAME=FILE).")
        content = read_json(path, "metrics file")
        if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict):
            raise UserError(f'{path} is no metrics file (no "protocols" in it); write one with python -m aha.eval.tvsum --output.')
        metrics[name] = content
    return metrics


def split_column(column: str) -> tuple[str, str, str]:
    """PROTOCOL/METRIC[/SUBSET]. Raises UserError."""
    parts = column.split("/")
    if len(parts) not in (2, 3):
        raise UserError(f"column {column!r} is not of the form PROTOCOL/METRIC or PROTOCOL/METRIC/SUBSET, such as corr_full/kendall.")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else ""


def value_of(content: Mapping[str, Any], column: str, where: str) -> Mapping[str, Any]:
    """{"mean", "per_category", ...} of one column. Raises UserError where the file does not have it."""
    protocol, metric, subset = split_column(column)
    found = leaf(content["protocols"], protocol, metric, subset)
    if not isinstance(found, dict) or "mean" not in found:
        known = []
        for name, metrics in content["protocols"].items():
            known += [f"{name}/{m}" + ("" if "mean" in tree else "/" + "|".join(tree)) for m, tree in metrics.items()]
        raise UserError(f"{where} has no column {column}; it has {', '.join(known)}.")
    return found


def baseline_of(content: Mapping[str, Any], row: str, column: str) -> float | None:
    found = leaf(content.get("baselines", {}).get(row, {}), *split_column(column))
    return found.get("mean") if isinstance(found, dict) else None


def categories_figure(metrics: Mapping[str, Mapping[str, Any]], column: str) -> Figure:
    """Grouped bars per category, the mean of all videos set apart, and the baselines of the first file as lines."""
    values = {name: value_of(content, column, name) for name, content in metrics.items()}
    names = list(dict.fromkeys(category for value in values.values() for category in value.get("per_category", {})))
    if not names:
        raise UserError(f"no file has categories for {column}; give the evaluation --info (or, for Mr.HiSum, its metadata).")
    figure = Figure(figsize=(max(4.0, 0.55 * len(names) + 2.2), 2.6), layout="constrained")
    axes = figure.add_subplot()
    at = np.array([*np.arange(len(names)), len(names) + 0.5])
    width = 0.8 / len(values)
    for number, (name, value) in enumerate(values.items()):
        heights = [np.nan if (v := value.get("per_category", {}).get(category)) is None else v for category in names]
        heights.append(np.nan if value["mean"] is None else value["mean"])
        axes.bar(at + (number - (len(values) - 1) / 2) * width, heights, width * 0.92, color=COLOURS[number % len(COLOURS)], label=name)
    first = next(iter(metrics.values()))
    for (row, shown), style in zip(BASELINES.items(), ("--", ":", "-.", (0, (1, 3)))):
        level = baseline_of(first, row, column)
        if level is not None:
            axes.axhline(level, color=INK, lw=0.8, ls=style, label=shown)
    axes.axhline(0, color=GREY, lw=0.6)
    axes.set_xticks(at, [*names, "all"])
    axes.set_ylabel(column, fontsize=8)
    _clean(axes)
    figure.legend(fontsize=7, frameon=False, ncols=4, loc="outside lower center")
    return figure


def comparison(metrics: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> list[tuple[str, list[tuple[float | None, Any]]]]:
    """Rows of the table: (name, [(mean, 95% interval or None) for each column]); the baselines of the first file come last."""
    rows = []
    for name, content in metrics.items():
        cells = []
        for column in columns:
            mean = value_of(content, column, name)["mean"]
            cells.append((mean, leaf(content.get("confidence_intervals", {}), *split_column(column))))
        rows.append((name, cells))
    first = next(iter(metrics.values()))
    for row, shown in BASELINES.items():
        cells = [(baseline_of(first, row, column), None) for column in columns]
        if any(mean is not None for mean, _ in cells):
            rows.append((shown, cells))
    return rows


def cell_text(mean: float | None, interval: Any) -> str:
    if mean is None:
        return "–"
    digits = 3 if abs(mean) < 10 else 1  # fractions, or percent

    def shown(value: float) -> str:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero

    if isinstance(interval, list) and None not in interval:
        return f"{shown(mean)} [{shown(interval[0])}, {shown(interval[1])}]"
    return shown(mean)


def best_rows(rows: Sequence[tuple[str, list[tuple[float | None, Any]]]], models: int) -> list[int | None]:
    """For each column the model row (not a baseline) with the highest mean."""
    best = []
    for column in range(len(rows[0][1])):
        known = [(cells[column][0], -index) for index, (_, cells) in enumerate(rows[:models]) if cells[column][0] is not None]
        best.append(-max(known)[1] if known else None)
    return best


def table_figure(rows: Sequence[tuple[str, list[tuple[float | None, Any]]]], columns: Sequence[str], models: int) -> Figure:
    """The table as a figure: the best model of each column bold, baselines below a rule."""
    best = best_rows(rows, models)
    name_width = 0.09 * max(len(name) for name, _ in rows) + 0.3
    cell_width = max(1.6, 0.078 * max(len(c) for c in columns) + 0.2)
    width, height = name_width + cell_width * len(columns), 0.26 * (len(rows) + 1.6)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    top = height - 0.26
    for number, column in enumerate(columns):
        axes.text(name_width + cell_width * (number + 0.5), top, column, ha="center", va="center", fontsize=8, color=INK)
    for index, (name, cells) in enumerate(rows):
        y = top - 0.26 * (index + 1)
        axes.text(0.1, y, name.replace("$", r"\$"), va="center", fontsize=8, color=INK if index < models else "#6b7280")
        for number, (mean, interval) in enumerate(cells):
            x, bold = name_width + cell_width * (number + 0.5), best[number] == index and models > 1
            axes.text(x, y, cell_text(mean, interval), ha="center", va="center", fontsize=8, weight="bold" if bold else "normal")
    for y, line in ((top + 0.15, 1.2), (top - 0.13, 0.7), (top - 0.26 * (models + 0.5), 0.7), (top - 0.26 * (len(rows) + 0.5), 1.2)):
        axes.plot([0.05, width - 0.05], [y, y], color=INK, lw=line)
    return figure


def table_latex(rows: Sequence[tuple[str, list[tuple[float | None, Any]]]], columns: Sequence[str], models: int) -> str:
    """The same table for LaTeX, \\usepackage{booktabs}."""

    def escaped(text: str) -> str:
        for character in "\\&%$#_{}~^":
            text = text.replace(character, {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"}.get(character, "\\" + character))
        return text

    best = best_rows(rows, models)
    lines = [r"\begin{tabular}{l" + "c" * len(columns) + "}", r"\toprule", " & ".join(["", *map(escaped, columns)]) + r" \\", r"\midrule"]
    for index, (name, cells) in enumerate(rows):
        if index == models:
            lines.append(r"\midrule")
        texts = [cell_text(mean, interval).replace("–", "--") for mean, interval in cells]
        texts = [rf"\textbf{{{text}}}" if best[n] == index and models > 1 else text for n, text in enumerate(texts)]
        lines.append(" & ".join([escaped(name), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


# ---- the command ----


def main(argv: list[str]) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m aha.visualize", description=__doc__, formatter_class=formatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    curves = kinds.add_parser("curves", help="score curves over the annotators' band")
    curves.add_argument("--predictions", nargs="+", required=True, metavar="[NAME=]FILE", help="prediction files")
    curves.add_argument("--annotations", required=True, help="TVSum annotations: TSV (also gzipped), .mat, or the folder that holds them")
    curves.add_argument("--info", help="the info TSV (default: beside the annotations)")
    curves.add_argument("--video_ids", nargs="+", help="which videos (default: the first four that are predicted)")
    for flag, default in (("alpha", 0.0), ("beta", 1.0), ("epsilon", 0.0), ("threshold", 0.0)):
        curves.add_argument(
            f"--{flag}", type=float, default=default, help="weight of the frame score, as in aha.eval (default %(default)s)"
        )
    categories = kinds.add_parser("categories", help="bars per category")
    categories.add_argument("--column", default="corr_full/kendall", help="PROTOCOL/METRIC (default %(default)s)")
    compare = kinds.add_parser("compare", help="a table of several metrics files")
    default_columns = ["corr_full/kendall", "corr_full/spearman", "f1_official60/f1"]
    compare.add_argument("--columns", nargs="+", default=default_columns, help="PROTOCOL/METRIC ... (default: %(default)s)")
    for command in (categories, compare):
        command.add_argument("--metrics", nargs="+", required=True, metavar="[NAME=]FILE", help="metrics files of aha.eval")
    for command in (curves, categories, compare):
        command.add_argument("--output", required=True, help="path without suffix; .png and .pdf are written")
    args = parser.parse_args(argv)
    if args.kind == "curves":
        figure = _curves(args)
    elif args.kind == "categories":
        figure = categories_figure(read_metrics(args.metrics), args.column)
    else:
        metrics = read_metrics(args.metrics)
        rows = comparison(metrics, args.columns)
        figure = table_figure(rows, args.columns, len(metrics))
        latex = Path(str(args.output).removesuffix(".png").removesuffix(".pdf") + ".tex")
        write_text(latex, table_latex(rows, args.columns, len(metrics)))
        print(f"wrote {latex}")
    for path in save(figure, args.output):
        print(f"wrote {path}")


def _curves(args: argparse.Namespace) -> Figure:
    videos = read_tvsum(args.annotations, args.info)
    predictions = {}
    for entry in args.predictions:
        name, equals, path = entry.partition("=")
        name, path = (name, path) if equals else (Path(entry).stem, entry)
        predictions[name] = read_predictions(path, args.alpha, args.beta, args.epsilon, args.threshold)
    ids = args.video_ids or [i for i in videos if any(i in entries for entries in predictions.values())][:4]
    unknown = [i for i in ids if i not in videos]
    if unknown or not ids:
        which = ", ".join(unknown) or "(none)"
        raise UserError(f"video {which} is not annotated in {args.annotations}; check --video_ids and the prediction files.")
    return curves_figure([videos[i] for i in ids], predictions)


if __name__ == "__main__":
    run_command(main)
