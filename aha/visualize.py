"""Figures for papers, each as PNG and PDF (text stays text).

    python -m aha.visualize curves --predictions ours.json --annotations ydata-tvsum50-anno.tsv --output fig/curves
    python -m aha.visualize curves --predictions ours.json --annotations mr_hisum.h5 --metadata metadata.csv --output fig/hisum
    python -m aha.visualize categories --metrics Ours=ours.json MMDuet=mmduet.json --column corr_full/kendall --output fig/categories
    python -m aha.visualize compare --metrics Ours=ours.json MMDuet=mmduet.json --output fig/table

`--metrics` are files that `python -m aha.eval.*` wrote with --output; a column is PROTOCOL/METRIC, or PROTOCOL/METRIC/SUBSET where the
protocol is reported on several sets of videos. `compare` also writes the table as LaTeX (booktabs).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core.files import write_text
from aha.core.flags import add_ids, with_dashed_ids
from aha.core.fusion import Fusion, add_fusion_flags, fusion_of
from aha.errors import UserError, run_command
from aha.eval import MODULES, load_task
from aha.results.document import read_document
from aha.results.layout import Layout
from aha.results.tree import leaf, subsets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aha.results.figures import Curve, Row

SHOWN = 4  # curves where no video is named


def name_and_path(entry: str) -> tuple[str, str]:
    """ "NAME=FILE" -> (NAME, FILE); a file without a name is called by its own, without folder and suffix."""
    name, equals, path = entry.partition("=")
    return (name, path) if equals else (Path(entry).stem, entry)


def read_metrics(named: Sequence[str]) -> dict[str, dict[str, Any]]:
    """NAME=FILE arguments -> metrics by name, in order. Raises UserError."""
    metrics = {}
    for name, path in map(name_and_path, named):
        if name in metrics:
            raise UserError(f"--metrics names {name} twice; give each file a name of its own (NAME=FILE).")
        metrics[name] = read_document(path)
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
            known += [f"{name}/{m}" + ("" if "mean" in tree else "/" + "|".join(subsets(tree))) for m, tree in metrics.items()]
        raise UserError(f"{where} has no column {column}; it has {', '.join(known)}.")
    return found


def label_of(content: Mapping[str, Any], column: str) -> str:
    """A column as people read it."""
    protocol, metric, subset = split_column(column)
    benchmark = content.get("settings", {}).get("benchmark")
    layout = load_task(benchmark).layout() if benchmark in MODULES else Layout("", (), ())
    return layout.label(protocol, metric, subset)


def baselines_of(content: Mapping[str, Any], column: str) -> dict[str, float | None]:
    """Row, as it is called in a figure -> mean of one column; rows that do not have it are left out."""
    benchmark = content.get("settings", {}).get("benchmark")
    labels = load_task(benchmark).rows if benchmark in MODULES else {}
    found = {labels.get(row, row): leaf(tree, *split_column(column)) for row, tree in content.get("baselines", {}).items()}
    return {label: entry["mean"] for label, entry in found.items() if isinstance(entry, dict) and "mean" in entry}


def published_of(content: Mapping[str, Any], column: str) -> dict[str, dict[str, Any]]:
    """The comparable published rows of a metrics file that was written with --published: name -> {"mean", "per_category"?}."""
    protocol, metric, subset = split_column(column)
    return {
        f"{row['method']} ({row['year']})": {"mean": row["numbers"][metric], "per_category": row["per_category"].get(metric, {})}
        for row in content.get("published", ())
        if row["comparable"] and row["protocol"] == protocol and metric in row["numbers"] and subset in ("", row["split"])
    }


def comparison(metrics: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> list[Row]:
    """Rows of the table: (name, [(mean, 95% interval or None) for each column]); the baselines of the first file come last."""
    rows = []
    for name, content in metrics.items():
        cells = []
        for column in columns:
            mean = value_of(content, column, name)["mean"]
            cells.append((mean, leaf(content.get("confidence_intervals", {}), *split_column(column))))
        rows.append((name, cells))
    first = next(iter(metrics.values()))
    levels = [baselines_of(first, column) for column in columns]
    for label in dict.fromkeys(label for found in levels for label in found):
        rows.append((label, [(found.get(label), None) for found in levels]))
    return rows


def table_latex(rows: Sequence[Row], columns: Sequence[str], models: int) -> str:
    """The same table for LaTeX, \\usepackage{booktabs}."""

    def escaped(text: str) -> str:
        for character in "\\&%$#_{}~^":
            text = text.replace(character, {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"}.get(character, "\\" + character))
        return text

    from aha.results.figures import best_rows, cell_text

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
    curves = kinds.add_parser("curves", help="score curves over the annotators' band (TVSum) or over gtscore (Mr.HiSum)")
    curves.add_argument("--predictions", nargs="+", required=True, metavar="[NAME=]FILE", help="prediction files")
    curves.add_argument(
        "--annotations", required=True, help="TVSum annotations: TSV (also gzipped), .mat, or the folder that holds them; or Mr.HiSum's .h5"
    )
    curves.add_argument("--info", help="TVSum: the info TSV (default: beside the annotations)")
    curves.add_argument("--metadata", metavar="CSV", help="Mr.HiSum: metadata.csv, for categories and predictions that use YouTube ids")
    add_ids(curves, "--video_ids", f"which videos (default: the first {SHOWN} that are predicted)")
    curves.add_argument("--threshold", type=_renamed, help=argparse.SUPPRESS)
    add_fusion_flags(curves)
    categories = kinds.add_parser("categories", help="bars per category")
    categories.add_argument("--column", default="corr_full/kendall", help="PROTOCOL/METRIC (default %(default)s)")
    compare = kinds.add_parser("compare", help="a table of several metrics files")
    default_columns = ["corr_full/kendall", "corr_full/spearman", "f1_official60/f1"]
    compare.add_argument("--columns", nargs="+", default=default_columns, help="PROTOCOL/METRIC ... (default: %(default)s)")
    for command in (categories, compare):
        command.add_argument("--metrics", nargs="+", required=True, metavar="[NAME=]FILE", help="metrics files of aha.eval")
    for command in (curves, categories, compare):
        command.add_argument("--output", required=True, help="path without suffix; .png and .pdf are written")
    args = parser.parse_args(with_dashed_ids(curves, "--video_ids", argv))
    from aha.results import figures  # matplotlib: only here

    if args.kind == "curves":
        figure = _curves(args)
    elif args.kind == "categories":
        metrics = read_metrics(args.metrics)
        values = {name: value_of(content, args.column, name) for name, content in metrics.items()}
        if not any(value.get("per_category") for value in values.values()):
            raise UserError(f"no file has categories for {args.column}; give the evaluation --info (or, for Mr.HiSum, its metadata).")
        first = next(iter(metrics.values()))
        values |= published_of(first, args.column)  # a row without categories has its bar at "all" only
        figure = figures.grouped_bars(label_of(first, args.column), values, baselines_of(first, args.column))
    else:
        metrics = read_metrics(args.metrics)
        rows = comparison(metrics, args.columns)
        labels = [label_of(next(iter(metrics.values())), column) for column in args.columns]
        figure = figures.table_figure(rows, labels, len(metrics))
        latex = Path(str(args.output).removesuffix(".png").removesuffix(".pdf") + ".tex")
        write_text(latex, table_latex(rows, labels, len(metrics)))
        print(f"wrote {latex}")
    for path in figures.save(figure, args.output):
        print(f"wrote {path}")


def _renamed(value: str) -> None:
    raise UserError(f"--threshold is called --uncertainty_threshold now, as everywhere; write --uncertainty_threshold {value}.")


def _curves(args: argparse.Namespace) -> Figure:
    from aha.results.figures import curves_figure

    fusion, named = fusion_of(args), [name_and_path(entry) for entry in args.predictions]
    find = _hisum_curves if Path(args.annotations).suffix in (".h5", ".hdf5") else _tvsum_curves
    return curves_figure(find(args, named, fusion))


def _tvsum_curves(args: argparse.Namespace, named: Sequence[tuple[str, str]], fusion: Fusion) -> list[Curve]:
    from aha.eval.annotations import names_of, read_tvsum
    from aha.eval.tvsum import people_curve, predictions_of

    videos = read_tvsum(args.annotations, args.info)
    samples = {name: {i: p.samples(fusion) for i, p in predictions_of(path, videos, args.annotations).items()} for name, path in named}
    names = names_of(videos)
    ids = [names.get(i, i) for i in args.video_ids or ()] or [i for i in videos if any(i in found for found in samples.values())][:SHOWN]
    unknown = [i for i in ids if i not in videos]
    if unknown or not ids:
        which = ", ".join(unknown) or "(none)"
        raise UserError(f"video {which} is not annotated in {args.annotations}; check --video_ids and the prediction files.")
    return [people_curve(videos[i], {name: found[i] for name, found in samples.items() if i in found}) for i in ids]


def _hisum_curves(args: argparse.Namespace, named: Sequence[tuple[str, str]], fusion: Fusion) -> list[Curve]:
    """One pass over each file, however many videos it predicts."""
    from aha.core.prediction import Samples, read_predictions
    from aha.eval.hisum import load

    with closing(load(args.annotations, metadata=args.metadata)) as truth:
        found: dict[str, dict[str, tuple[str, Samples]]] = {truth.key(i): {} for i in args.video_ids or ()}
        if unknown := [i for i in found if i not in truth.file.ids]:
            raise UserError(f"video {', '.join(unknown)} is not in {args.annotations}; check --video_ids (YouTube ids need --metadata).")
        for name, path in named:
            for prediction in read_predictions(path):
                video_id = truth.key(prediction.video_id)
                if not args.video_ids and len(found) < SHOWN and video_id in truth.file.ids:
                    found.setdefault(video_id, {})
                if video_id in found:
                    found[video_id][name] = path, prediction.samples(fusion)
        if not any(found.values()):
            raise UserError(f"the prediction files have no video of {args.annotations}; check both (YouTube ids need --metadata).")
        return [truth.truth_curve(video_id, predictions) for video_id, predictions in found.items()]


if __name__ == "__main__":
    run_command(main)
