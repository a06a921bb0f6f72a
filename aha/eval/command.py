"""What the commands of all benchmarks share: flags, selection, comparison, console, metrics file and report.

A benchmark's `load` returns a subclass of Benchmark, the ground truth that is to be scored on; everything else happens here.
"""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aha.core import lost_frames
from aha.core.checked import id_of
from aha.core.files import check_output, read_json, write_json
from aha.core.flags import add_ids, check_outputs, with_dashed_ids
from aha.core.fusion import NAMES, RELEVANCE, Fusion, add_fusion_flags, fusion_of
from aha.core.prediction import Prediction, keyed, read_predictions
from aha.errors import UserError
from aha.eval import published
from aha.results import console, table
from aha.results import tree as results
from aha.results.compare import render as render_comparison
from aha.results.compare import short_names
from aha.results.layout import Protocol

if TYPE_CHECKING:
    from aha.eval.task import Task
    from aha.results.figures import Curve

BASELINES = Path("outputs/baselines")  # where `aha baseline NAME` writes: DATASET/NAME.json
COMMON = (
    "predictions",
    "compare",
    "baselines",
    "output",
    "report",
    "strict",
    "trained_on",
    "random_runs",
    "published",
    "fusion",
    *NAMES,
)  # the others go to `load`


@dataclass(kw_only=True)
class Benchmark(ABC):
    """The ground truth of one run. annotations: where it was read; chosen: keys to be scored on; protocols: those to be computed."""

    annotations: str
    chosen: Sequence[str]
    protocols: Sequence[Protocol]
    categories: Mapping[str, str] = field(default_factory=dict)  # key -> category

    @abstractmethod
    def score(self, path: Path, fusion: Fusion, trained_on: Set[str], progress: bool) -> results.Scored:
        """Score what the file predicts of the chosen ones. Raises UserError."""

    def rows(self, scored: results.Scored | None, runs: int, progress: bool) -> dict[str, list[results.Column]]:
        """The baselines that need no prediction, over the same videos as the prediction: row -> columns."""
        return {}

    def curves(self, path: Path, fusion: Fusion, wanted: Sequence[str]) -> Iterator[Curve]:
        """Score curves of the report."""
        return iter(())

    def clock(self, path: Path) -> dict[str, Any] | None:
        """Frames that the file's model did not see because it was busy (aha.core.lost_frames); None: it saw all."""
        count = lost_frames.Count()
        for prediction in read_predictions(path) if lost_frames.may_have_clock(path) else ():
            count.add(prediction.record)
        return count.summary()

    def remarks(self, scored: results.Scored | None) -> list[str]:
        """Further lines of the console table's head."""
        return []

    def sets(self, scored: results.Scored) -> dict[str, published.Counted]:
        """The published sets of videos (val10, test): how many of how many were scored. Papers' rows are compared on whole sets only."""
        return {}

    def close(self) -> None:
        """Close the files that scoring keeps open; most benchmarks keep none."""
        return


# ---------------------------------------------------------------- flags


def parser(task: Task, about: str, module: str) -> argparse.ArgumentParser:
    """The flags of a benchmark's command: those of all, then its own."""
    p = argparse.ArgumentParser(f"python -m {module}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = p.add_mutually_exclusive_group(required=task.random_runs == 0)
    alone = "; without it the baseline rows are printed" if task.random_runs else ""
    files.add_argument("--predictions", metavar="FILE", help=f"prediction file (JSON list, JSON Lines or a short form){alone}")
    files.add_argument("--compare", nargs="+", metavar="FILE", help="several prediction files side by side, with differences to the first")
    p.add_argument("--annotations", metavar="FILE", help=f"annotation file or the data set's folder (default: {task.folder})")
    names = ", ".join(protocol.name for protocol in task.protocols)
    p.add_argument("--protocols", nargs="+", metavar="NAME", help=f"only these (default: all), such as {names}")
    add_ids(p, "--video_ids", f"only these {task.unit}")
    p.add_argument("--limit", type=int, metavar="N", help=f"only the first N {task.unit}")
    p.add_argument("--strict", action="store_true", help=f"missing, constant, undefined or trained-on {task.unit} are an error")
    p.add_argument("--trained_on", metavar="JSON", help="list of ids the model was trained on (trained_on_videos.json)")
    if task.random_runs:
        p.add_argument(
            "--random_runs", type=int, default=task.random_runs, metavar="N", help="runs of the random row (default %(default)s)"
        )
    p.add_argument(
        "--published", action="store_true", help="published rows of the same protocol and videos beside ours; why others are not"
    )
    p.add_argument(
        "--baselines", nargs="*", metavar="FILE",
        help=f"rows of `aha baseline`, with paired differences to them (without FILE: all of {BASELINES / task.name})",
    )  # fmt: skip
    p.add_argument("--output", metavar="JSON", help="write all numbers to this file")
    p.add_argument("--report", metavar="DIR", help="write metrics.json, report.html and its figures (PNG) into this folder")
    add_fusion_flags(p)
    task.add_flags(p)
    return p


def select(known: Sequence[str], where: str, video_ids: Sequence[str] | None, limit: int | None) -> list[str]:
    """The known ids that --video_ids and --limit leave. Raises UserError for an unknown id and where none is left."""
    chosen = list(known)
    if video_ids:
        if unknown := [i for i in video_ids if i not in set(known)]:
            raise UserError(f"--video_ids: {table.named_list(unknown)} not in {where}; the ids are those of the annotation file.")
        chosen = [i for i in chosen if i in set(video_ids)]
    if limit is not None:
        if limit < 1:
            raise UserError(f"--limit {limit}: at least 1 video is needed.")
        chosen = chosen[:limit]
    if not chosen:
        raise UserError(f"{where}: the flags that select (--video_ids, --fold, --split) leave nothing to score on; loosen one.")
    return chosen


def select_protocols(known: Sequence[Protocol], wanted: Sequence[str] | None) -> list[Protocol]:
    """The protocols that --protocols names, in its order; all without it."""
    by_name = {protocol.name: protocol for protocol in known}
    if unknown := [name for name in wanted or () if name not in by_name]:
        raise UserError(f"--protocols {unknown[0]} is none of {', '.join(by_name)}.")
    return [by_name[name] for name in wanted or by_name]


def read_trained_on(path: str | Path | None) -> set[str]:
    if path is None:
        return set()
    ids = read_json(path, "list of trained-on videos")
    names = {name for i in ids if (name := id_of(i)) is not None} if isinstance(ids, list) else set()
    if not isinstance(ids, list) or any(id_of(i) is None for i in ids):
        raise UserError(f"{path} is no JSON list of video ids; use the trained_on_videos.json that the trainer wrote beside the weights.")
    return names


def answers_of(path: Path, chosen: Sequence[str], key: str) -> tuple[dict[str, Prediction], dict[str, str]]:
    """The chosen keys that have a prediction, in their order, and why the others have none. key: the Prediction's property that names it.

    Raises UserError where the file predicts none of them.
    """
    found = dict(keyed(read_predictions(path), attrgetter(key), "video" if key == "video_id" else "question"))
    answers = {i: found[i] for i in chosen if i in found}
    if not answers:
        raise UserError(
            f"{path}: none of its {len(found)} predictions (first: {next(iter(found))!r}) is for one of the {len(chosen)} chosen (first: "
            f"{chosen[0]!r}); check the flags that select, or the two files belong to different data sets."
        )
    return answers, {i: "no prediction" for i in chosen if i not in found}


# ---------------------------------------------------------------- evaluation


def evaluate(
    task: Task,
    predictions: str | Path | None = None,
    *,
    fusion: Fusion = RELEVANCE,
    strict: bool = False,
    trained_on: str | Path | None = None,
    random_runs: int | None = None,
    progress: bool = False,
    baselines: Sequence[str | Path] | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """The content of the metrics file. flags: those of the benchmark's command, by name. Raises UserError for bad input."""
    runs = task.random_runs if random_runs is None else random_runs
    with closing(task.load(**flags)) as benchmark:
        scored = _score(benchmark, predictions, fusion, trained_on, strict, progress) if predictions is not None else None
        metrics = _document(task, benchmark, scored, runs, fusion, flags, progress)
        _add_baselines(task, benchmark, scored, metrics, baselines)
        return metrics


def _add_baselines(
    task: Task, benchmark: Benchmark, scored: results.Scored | None, metrics: dict[str, Any], files: Sequence[str | Path] | None
) -> None:
    """Prediction files of `aha baseline` as rows: over the videos that the prediction has, each with the paired difference to it."""
    if files is None:
        return
    paths = [Path(file) for file in files]
    if not files:
        folder = BASELINES / task.name
        paths = sorted(path for path in folder.glob("*.json*") if not path.name.endswith(".skipped.json"))
        if not paths:
            raise UserError(
                f"--baselines: {folder} holds no file; make some with `aha baseline NAME --dataset {task.name}`, or name files."
            )
    for path in paths:
        if not path.exists():
            raise UserError(f"--baselines: {path} does not exist; make it with `aha baseline NAME --dataset {task.name} --output {path}`.")
    for name, path in zip(short_names([str(path) for path in paths]), paths):
        found = benchmark.score(path, RELEVANCE, set(), True)
        columns = found.columns
        if scored:
            own = {(c.protocol, c.metric, c.subset): set(c.ids) for c in scored.columns}
            columns = [c.of([i for i in c.ids if i in own.get((c.protocol, c.metric, c.subset), ())]) for c in columns]
            columns = [c for c in columns if c.ids]
        tree = results.baselines_tree({f"baseline {name}": columns})
        differences = results.differences_tree(columns, scored.columns) if scored else {}
        for c in columns:
            if (difference := results.leaf(differences, c.protocol, c.metric, c.subset)) is not None:
                results.leaf(tree[f"baseline {name}"], c.protocol, c.metric, c.subset)["difference"] = difference
        metrics["baselines"] |= tree


def _score(benchmark: Benchmark, path: Any, fusion: Fusion, trained_on: Any, strict: bool, progress: bool) -> results.Scored:
    scored = benchmark.score(Path(path), fusion, read_trained_on(trained_on), progress)
    if (clock := benchmark.clock(Path(path))) is not None:
        scored.extra["clock"] = clock
    if scored.trained_on:
        how_many = f"{len(scored.trained_on)} of the {scored.count} scored"
        print(f"WARNING: {path}: the model was TRAINED ON {how_many}; these numbers are no held-out result.", file=sys.stderr)
    for what, ids in (
        ("no prediction for", list(scored.skipped)), ("constant scores for", scored.constant),
        ("a metric without a value for", scored.undefined), ("trained-on:", scored.trained_on), ("metrics missing:", list(scored.missing)),
    ):  # fmt: skip
        if strict and ids:
            raise UserError(f"{path}: {what} {len(ids)} ({table.named_list(ids)}), and --strict allows none; leave out --strict.")
    return scored


def _document(
    task: Task, benchmark: Benchmark, scored: results.Scored | None, runs: int, fusion: Fusion, flags: Mapping[str, Any], progress: bool
) -> dict[str, Any]:
    protocols = scored.protocols if scored else benchmark.protocols
    settings = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in flags.items()},
        "benchmark": task.name,
        "predictions": scored.path if scored else None,
        "annotations": benchmark.annotations,
        "protocols": [protocol.name for protocol in protocols],
        "weights": asdict(fusion),
        "selected_videos": len(benchmark.chosen),
        **({"random_runs": runs} if task.random_runs else {}),
    }
    return results.document(scored, benchmark.rows(scored, runs, progress), benchmark.categories, settings)


# ---------------------------------------------------------------- the command


def run(task: Task, about: str, module: str, argv: list[str]) -> None:
    """The command of a benchmark: print the tables, write what was asked for."""
    flags_of = parser(task, about, module)
    args = flags_of.parse_args(with_dashed_ids(flags_of, "--video_ids", argv))
    runs = getattr(args, "random_runs", 0)
    if task.random_runs and runs < 1:
        raise UserError(f"--random_runs {runs}: at least 1 run is needed.")
    if args.report and not args.predictions:
        raise UserError("--report needs --predictions: it shows one prediction file; give --output for the numbers alone.")
    if args.compare and len(args.compare) < 2:
        raise UserError("--compare needs at least two prediction files; give --predictions for one.")
    check_outputs(args, "output", "scored")
    if args.report:
        check_output(args.report, overwrite=True)
    fusion = fusion_of(args)
    flags = {name: value for name, value in vars(args).items() if name not in COMMON}
    with closing(task.load(**flags)) as benchmark:
        if args.compare:
            _compare(task, benchmark, args, runs, fusion, flags)
            return
        scored = _score(benchmark, args.predictions, fusion, args.trained_on, args.strict, True) if args.predictions else None
        metrics = _document(task, benchmark, scored, runs, fusion, flags, progress=True)
        _add_baselines(task, benchmark, scored, metrics, args.baselines)
        layout = task.layout(tuple(scored.protocols if scored else benchmark.protocols))
        print(console.render(metrics, layout, benchmark.remarks(scored)))
        if args.published:
            rows, sets = published.read_rows(task.name), benchmark.sets(scored) if scored else {}
            metrics["published"] = published.document(rows, metrics["protocols"], sets)
            print("\n" + published.render(rows, metrics["protocols"], sets, layout))
        if args.output:
            write_json(args.output, metrics)
        if args.report:
            from aha.results.report import wanted_curves, write_report  # matplotlib: only here

            curves = benchmark.curves(Path(args.predictions), fusion, wanted_curves(metrics, layout))
            print(f"\nreport: {write_report(args.report, metrics, layout, curves)}")


def _compare(task: Task, benchmark: Benchmark, args: argparse.Namespace, runs: int, fusion: Fusion, flags: Mapping[str, Any]) -> None:
    files = [_score(benchmark, path, fusion, args.trained_on, args.strict, True) for path in args.compare]
    lost = {i for scored in files for i in scored.skipped}
    if lost:  # all rows, baselines too, on the videos that every file scores
        left = [i for i in benchmark.chosen if i not in lost]
        if not left:
            raise UserError(f"--compare: no {task.unit[:-1]} is scored by all of the {len(files)} files; are they of one split?")
        gone = table.named_list(sorted(lost))
        print(f"compared on the {len(left)} of {len(benchmark.chosen)} {task.unit} that all {len(files)} files score; lost: {gone}\n")
        with closing(task.load(**{**flags, "video_ids": left})) as benchmark:
            _compare(task, benchmark, args, runs, fusion, {**flags, "video_ids": left})
        return
    metrics = [_document(task, benchmark, scored, runs, fusion, flags, progress=True) for scored in files]
    names = short_names(args.compare)
    differences = {name: results.differences_tree(files[0].columns, other.columns) for name, other in zip(names[1:], files[1:])}
    print(render_comparison(names, metrics, differences, [task.layout(tuple(scored.protocols)) for scored in files]))
    if args.output:
        write_json(args.output, {"predictions": dict(zip(names, metrics)), "differences_to_first": differences})
