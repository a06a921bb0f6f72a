"""TVSum numbers of a k-fold run: every split's test videos, scored by the model that did not see them, in one table.

    python -m aha.eval.kfold --predictions outputs/kfold/split-*/predictions.json --splits tvsum_splits.json --output kfold.json

The files are those of the splits in their order (scripts/kfold_tvsum.sh writes and evaluates them). A video that several splits test has a
prediction in each, so one file cannot hold them. A split's number is the mean over its test videos, the result the mean over splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aha.core.files import by_number, write_json
from aha.core.flags import check_outputs
from aha.core.fusion import RELEVANCE, Fusion, add_fusion_flags, fusion_of
from aha.errors import UserError, run_command
from aha.eval import tvsum
from aha.eval.community import read_splits
from aha.eval.h5_numbers import json_statistics
from aha.results.table import block, shown


def evaluate(
    predictions: Sequence[str | Path],
    splits: str | Path,
    annotations: str | Path | None = None,
    h5: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    fusion: Fusion = RELEVANCE,
) -> dict[str, Any]:
    """{"protocols": {protocol: {metric: {"mean", "splits"}}}, "splits": [{"predictions", "test", "trained_on"}], "settings"}.

    Raises UserError where the files are not one for each split, or a model was trained on a video that its split tests.
    """
    listed = read_splits(splits)
    if len(predictions) != len(listed):
        raise UserError(f"{len(predictions)} prediction files for the {len(listed)} splits of {splits}; give one for each, in their order.")
    files = [Path(path).resolve() for path in predictions]
    if again := [path for path, file in zip(predictions, files) if files.count(file) > 1]:
        raise UserError(f"{again[0]} is given for several splits; each split is scored by a model of its own.")
    per_split: dict[tuple[str, str], list[float]] = {}
    runs = []
    for split, path in zip(listed, predictions):
        document = tvsum.evaluate(path, annotations, h5=h5, splits=[split], protocols=protocols, fusion=fusion, random_runs=1)
        if document["videos"]["trained_on"]:
            seen = document["videos"]["trained_on"]
            raise UserError(f"{path}: the model was trained on {seen[0]}, which its split tests; are the files in the order of the splits?")
        runs.append({"predictions": str(path), "test": list(split.test), "skipped": document["videos"]["skipped"]})
        for protocol, metrics in document["protocols"].items():
            for metric, entry in metrics.items():
                entry = entry.get("all50", entry)
                if "splits" in entry:
                    value = entry["splits"]["mean"]
                    per_split.setdefault((protocol, metric), []).append(float("nan") if value is None else value)
    tree: dict[str, Any] = {}
    for (protocol, metric), values in per_split.items():
        statistics = json_statistics(values)
        tree.setdefault(protocol, {})[metric] = {"mean": statistics["mean"], "splits": statistics}
    settings = {name: value and str(value) for name, value in {"splits": splits, "annotations": annotations, "h5": h5}.items()}
    return {"protocols": tree, "splits": runs, "settings": settings}


def render(document: dict[str, Any]) -> str:
    """One row a metric: every split, mean and both deviations."""
    count = len(document["splits"])
    columns = [*(f"split {k}" for k in range(count)), "mean", "sd(n-1)", "sd(n)"]
    rows = []
    for protocol, metrics in document["protocols"].items():
        for metric, entry in metrics.items():
            statistics = entry["splits"]
            values = [*statistics["per_split"], statistics["mean"], statistics["sd_ddof1"], statistics["sd_ddof0"]]
            percent = protocol in ("keyshots_h5", "por")
            rows.append((f"{protocol} {metric}", [shown(value, percent) for value in values]))
    return block(f"TVSum, {count} splits, each by the model that did not see its test videos", columns, rows)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aha.eval.kfold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="FILE",
        help="one prediction file for each split; taken in the order of their numbers",
    )
    parser.add_argument("--splits", required=True, metavar="FILE", help="splits in the form of PGL-SUM, DSNet or CSTA")
    parser.add_argument("--annotations", metavar="FILE", help="TVSum's annotations or their folder (default: those of the project)")
    parser.add_argument("--h5", metavar="FILE", help="eccv16_dataset_tvsum_google_pool5.h5: keyshots_h5 and por")
    parser.add_argument("--protocols", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--output", metavar="JSON", help="write all numbers to this file")
    add_fusion_flags(parser)
    args = parser.parse_args(argv)
    check_outputs(args, "output")
    files = by_number(args.predictions)
    document = evaluate(files, args.splits, args.annotations, args.h5, args.protocols, fusion_of(args))
    print(render(document))
    if args.output:
        write_json(args.output, document)


if __name__ == "__main__":
    run_command(main)
