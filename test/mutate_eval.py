"""Mutated annotation, prediction, split, metadata and metrics files: each is refused with one sentence or scored, never a traceback or a hang.

    python test/mutate_eval.py --runs 1200 --seed 0

Prints how many were refused and how many scored, and the peak of memory; a failure names the case and keeps the file.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from eval_data import write_hisum, write_mat, write_predictions, write_tvsum

from aha.core.memory import peak_mib
from aha.errors import UserError

SECONDS = 120  # a case that takes longer counts as a hang
TOKENS = [
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"\t",
    b"\n",
    b'"',
    b",",
    b"[",
    b"{",
    b"]",
    b"\x00",
    b"\xff",
    b"9" * 400,
    b"0:00",
    b"[" * 3000,
    b"\xc5",
    b"1.5",
]
VALUES = [None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", [], {}, [[]], {"scores": [1]}, 2**63, -0.0, "clip-0", ["a"]]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not data:
            return data
        at, size = rng.randrange(len(data)), rng.choice([1, 2, 10, 200, 5000])
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] + data[at:]
        elif kind == 3:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif kind == 4:
            data = data[:at] + rng.choice(TOKENS) + data[at + 1 :]
        elif kind == 5:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 6:
            lines = data.split(b"\n")
            lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
            data = b"\n".join(lines)
        else:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
    return data


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, delete or double a random part of the value."""
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 3])):
        node, parent, key = value, None, None
        while isinstance(node, (dict, list)) and node and rng.random() < 0.85:
            parent, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node = parent[key]
        if parent is None:
            continue
        kind = rng.randrange(4)
        if kind == 0:
            parent[key] = rng.choice(VALUES)
        elif kind == 1:
            del parent[key]
        elif kind == 2 and isinstance(parent, list):
            parent.insert(key, node)
        elif isinstance(parent, dict):
            parent[rng.choice(["videos", "scores", "frames", "debug_data", "trained_on", "other"])] = parent.pop(key)
        else:
            rng.shuffle(parent)
    return json.dumps(value).encode()


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A random line of JSON Lines, as JSON or as bytes."""
    lines = data.strip().split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = (mutate_json if rng.random() < 0.8 else mutate_bytes)(lines[at], rng)
    return b"\n".join(lines)


def write_questions(folder: Path) -> None:
    """Annotations (NAME_gt.jsonl) and predictions (NAME_pred.json) of three benchmarks, three questions each."""
    rng = random.Random(0)

    def rows(seconds: int) -> list[dict[str, float]]:
        return [
            {"time": float(t), "informative_score": 0.5, "relevance_score": rng.random(), "uncertainty_score": 0.1} for t in range(seconds)
        ]

    names = [f"q{k}" for k in range(3)]
    truths = {
        "qvh": [{"qid": 10 + k, "query": "a", "vid": q, "duration": 20, "relevant_clip_ids": [2, 3], "saliency_scores": [[4, 3, 4], [2, 3, 3]],
                 "relevant_windows": [[4, 8]]} for k, q in enumerate(names)],
        "charades": [{"question_id": q, "video": q, "timestamps": [[2.0, 9.0]], "duration": 20.0, "query": "a"} for q in names],
        "youtube": [{"vid": q, "domain": "dog", "fps": 5.0, "duration": 20.0, "clip": [[0, 50], [50, 100]], "label": [[1], [0]]} for q in names],
    }  # fmt: skip
    answers = {
        "qvh": [{"qid": 10 + k, "vid": q, "pred_relevant_windows": [[4.0, 8.0, 0.9]], "pred_saliency_scores": [rng.random() for _ in range(10)]}
                for k, q in enumerate(names)],
        "charades": [{"question_id": q, "video_duration": 20.0, "frame_fps": 1, "true_frames_list": list(range(0, 500, 25)), "debug_data": rows(20)}
                     for q in names],
        "youtube": [{"video_uuid": q, "frame_fps": 1.0, "scores": [rng.random() for _ in range(20)]} for q in names],
    }  # fmt: skip
    for name, truth in truths.items():
        (folder / f"{name}_gt.jsonl").write_text("\n".join(map(json.dumps, truth)))
        (folder / f"{name}_pred.json").write_text(json.dumps(answers[name]))


def targets(folder: Path) -> list[tuple[Path, Callable[[], object], Callable[[bytes, random.Random], bytes]]]:
    """(file to damage, command that reads it, how it is damaged)."""
    from aha import visualize
    from aha.eval import charades, grid_search, hisum, qvhighlights, tvsum, youtube_highlights

    videos = write_tvsum(folder, n_videos=3, seconds=16, fps=6)
    write_predictions(folder / "predictions.json", videos, fps=6)
    relevance = {
        e["video_uuid"]: [h["relevance_score"] for h in e["debug_data"]] for e in json.loads((folder / "predictions.json").read_text())
    }
    frames = {i: list(range(0, 96, 6)) for i in videos}
    (folder / "short.json").write_text(json.dumps({"videos": {i: {"frames": frames[i], "scores": s} for i, s in relevance.items()}}))
    (folder / "lines.jsonl").write_text("\n".join(json.dumps(e) for e in json.loads((folder / "predictions.json").read_text())))
    (folder / "shots.json").write_text(json.dumps({i: [[0, 30], [31, 60], [61, 95]] for i in videos}))
    packed = folder / "packed"
    packed.mkdir()
    (packed / "demo-anno.tsv.gz").write_bytes(gzip.compress((folder / "demo-anno.tsv").read_bytes(), mtime=0))
    (packed / "demo-info.tsv").write_bytes((folder / "demo-info.tsv").read_bytes())
    write_mat(folder / "a.mat", videos, seconds=16.0)
    hisum_folder = folder / "hisum"
    write_hisum(hisum_folder, n_videos=3)

    def tvsum_command(
        predictions: str = "predictions.json", annotations: str = "demo-anno.tsv", shots: bool = False
    ) -> Callable[[], object]:
        more = ["--shots", str(folder / "shots.json"), "--protocols", "f1_shots"] if shots else ["--protocols", "corr_full", "hd_top5"]
        argv = ["--predictions", str(folder / predictions), "--annotations", str(folder / annotations), *more, "--random_runs", "1"]
        return lambda: tvsum.main([*argv, "--output", str(folder / "out.json")])

    def hisum_command() -> None:
        argv = ["--predictions", str(hisum_folder / "predictions.json"), "--annotations", str(hisum_folder / "mr_hisum.h5")]
        argv += ["--split", str(hisum_folder / "split.json"), "--metadata", str(hisum_folder / "metadata.csv"), "--random_runs", "1"]
        hisum.main([*argv, "--protocols", "official", "--output", str(folder / "out.json")])

    def question_command(benchmark, name: str, *flags: str) -> Callable[[], object]:
        argv = ["--annotations", str(folder / f"{name}_gt.jsonl"), "--predictions", str(folder / f"{name}_pred.json"), *flags]
        return lambda: benchmark.main([*argv, "--output", str(folder / "out.json")])

    def compare_command() -> None:
        argv = ["--predictions", str(folder / "predictions.json"), "--annotations", str(folder / "demo-anno.tsv"), "--folds", "2"]
        argv += [
            f"--grid_{name}={values}"
            for name, values in (("alpha", "0,1"), ("beta", "1"), ("epsilon", "0"), ("uncertainty_threshold", "0"))
        ]
        grid_search.main([*argv, "--output", str(folder / "out.json")])

    def figure_command() -> None:
        visualize.main(
            ["compare", "--metrics", f"A={folder / 'metrics.json'}", "--columns", "corr_full/kendall", "--output", str(folder / "figure")]
        )

    def categories_command() -> None:
        argv = ["--metrics", f"A={folder / 'metrics.json'}", "--column", "corr_full/kendall", "--output", str(folder / "figure")]
        visualize.main(["categories", *argv])

    write_questions(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        tvsum.main(["--annotations", str(folder / "demo-anno.tsv"), "--predictions", str(folder / "predictions.json"), "--random_runs", "1",
                "--protocols", "corr_full", "--published", "--output", str(folder / "metrics.json")])  # fmt: skip
    return [
        *(
            (folder / f"{name}_{part}", question_command(benchmark, name, *flags), mutate)
            for benchmark, name, flags in (
                (qvhighlights, "qvh", ["--random_runs", "1"]),
                (charades, "charades", []),
                (youtube_highlights, "youtube", ["--random_runs", "1"]),
            )
            for part, mutate in (("gt.jsonl", mutate_lines), ("pred.json", mutate_json))
        ),
        (folder / "predictions.json", compare_command, mutate_json),
        (folder / "metrics.json", figure_command, mutate_json),
        (folder / "metrics.json", categories_command, mutate_json),
        (folder / "demo-anno.tsv", tvsum_command(), mutate_bytes),
        (folder / "demo-info.tsv", tvsum_command(), mutate_bytes),
        (folder / "predictions.json", tvsum_command(), mutate_bytes),
        (folder / "predictions.json", tvsum_command(), mutate_json),
        (folder / "short.json", tvsum_command("short.json"), mutate_json),
        (folder / "lines.jsonl", tvsum_command("lines.jsonl"), mutate_bytes),
        (folder / "shots.json", tvsum_command(shots=True), mutate_json),
        (packed / "demo-anno.tsv.gz", tvsum_command(annotations="packed/demo-anno.tsv.gz"), mutate_bytes),
        (folder / "a.mat", tvsum_command(annotations="a.mat"), mutate_bytes),
        (hisum_folder / "mr_hisum.h5", hisum_command, mutate_bytes),
        (hisum_folder / "predictions.json", hisum_command, mutate_json),
        (hisum_folder / "split.json", hisum_command, mutate_json),
        (hisum_folder / "metadata.csv", hisum_command, mutate_bytes),
    ]


def run_cases(cases: int, seed: int) -> dict[str, object]:
    """{"refused", "accepted", "by_file"}; anything but UserError propagates with the case's number and file."""
    counts: Counter[str] = Counter()
    by_file: dict[str, Counter[str]] = {}

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as name:
        os.environ["AHA_CACHE"] = f"{name}/cache"
        every = targets(Path(name))
        output = Path(name) / "out.json"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for _, command, _ in every:  # as they are, all are scored
                command()
        for case in range(cases):
            rng = random.Random(f"{seed}:{case}")
            path, command, mutate = every[case % len(every)]
            original = path.read_bytes()
            path.write_bytes(mutate(original, rng))
            output.unlink(missing_ok=True)
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    command()
                outcome = "accepted"
                if command.__name__ not in ("figure_command", "categories_command"):
                    json.loads(output.read_text())
            except UserError as error:
                outcome = "refused"
                assert "\n" not in str(error) and not output.exists(), (case, str(error))
            except BaseException as error:
                keep = Path(tempfile.gettempdir()) / f"mutation-{case}-{path.name}"
                keep.write_bytes(path.read_bytes())
                raise AssertionError(f"case {case}, {path.name} (kept as {keep}): {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
                path.write_bytes(original)
            counts[outcome] += 1
            by_file.setdefault(path.name, Counter())[outcome] += 1
    return {**counts, "by_file": {name: dict(found) for name, found in by_file.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1200, help="mutated files (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = run_cases(arguments.runs, arguments.seed)
    peak = round(peak_mib())
    print(json.dumps({**found, "tracebacks": 0, "hangs": 0, "peak_MB": peak}))  # a traceback or a hang has ended the run before
