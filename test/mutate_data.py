"""Mutated mixtures, video indexes, annotations and metadata: each is refused with one sentence or loaded, never a traceback or a hang.

    python test/mutate_data.py --runs 700 --seed 0

Prints how many were refused and how many loaded; a failure names the case and keeps the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

from mutate_eval import mutate_bytes, mutate_json
from paths import shared_fixture
from test_data_mixture import (
    CAPTIONS,
    GROUNDING,
    QUESTIONS,
    make_video,
    mmduetit_entry,
    per_second,
    tvsum_entry,
    write_hihd,
    write_hisum,
    write_tvsum,
)

from aha.conversation import load_tokenizer
from aha.data.mixture import build_mixture, missing_files
from aha.errors import UserError

SECONDS = 120  # a case that takes longer counts as a hang


def make_data(folder: Path) -> list[Path]:
    """One small data set of each type in one mixture, whose index is made; the files to damage, the mixture first."""
    videos = folder / "video"
    for k in range(6):
        make_video(videos / f"v{k}.mp4", 6 + k)
    write_tvsum(folder / "tvsum")
    scores = [["v0", "goals", 6, json.dumps(per_second(0, 7)), json.dumps([[2, 3, "blackout"]]), "train"]]
    entries = [
        tvsum_entry(folder / "tvsum", videos),
        {**write_hisum(folder / "hisum", {f"video_{k}": per_second(k, 6 + k) for k in range(6)}), "videos": str(videos), "weight": 2, "fps": 2},
        {**write_hihd(folder / "hihd.csv", scores), "videos": str(videos), "weight": 0.5, "max_num_frames": 4},
        *(mmduetit_entry(folder, kind, content, videos) for kind, content in (("captions", CAPTIONS), ("questions", QUESTIONS), ("grounding", GROUNDING))),
    ]  # fmt: skip
    for entry in entries:
        entry |= {"index": str(folder / "index.json"), "source": "made here"}
    (folder / "mixture.json").write_text(json.dumps(entries))
    load(folder / "mixture.json")
    names = "mixture.json index.json captions.json questions.json grounding.json hihd.csv hisum/mr_hisum.h5 hisum/mr_hisum_split.json hisum/metadata.csv"
    return [folder / name for name in names.split()]


TOKENIZER = load_tokenizer(shared_fixture("reference/aha-adapter"))


def load(mixture: Path) -> None:
    """Everything that training does with the files before it decodes a video."""
    missing_files(mixture)
    for epoch in range(2):
        loaded = build_mixture(mixture, TOKENIZER, frame_fps=1)
        loaded.set_epoch(epoch)
        assert len(loaded.lengths) == len(loaded) and loaded.trained_on_ids() and loaded.report(None)


def run_cases(runs: int, seed: int) -> dict[str, object]:
    counts: Counter[str] = Counter()

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        before = Path.cwd()
        os.chdir(name)  # a mutated path may be a relative one
        try:
            files = make_data(Path(name))
            originals = {path: path.read_bytes() for path in files}
            for case in range(runs):
                rng = random.Random(f"{seed}:{case}")
                path = files[case % len(files)]
                mutate = mutate_json if path.suffix == ".json" and rng.random() < 0.7 else mutate_bytes
                path.write_bytes(mutate(originals[path], rng))
                damaged = path.read_bytes()
                signal.alarm(SECONDS)
                try:
                    load(files[0])
                    counts["loaded"] += 1
                except UserError as error:
                    assert "\n" not in str(error), str(error)
                    counts["refused"] += 1
                except BaseException as error:
                    keep = Path(tempfile.gettempdir()) / f"mutation-{case}-{path.name}"
                    keep.write_bytes(damaged)
                    raise AssertionError(f"case {case}, {path.name} (kept as {keep}): {type(error).__name__}: {error}") from error
                finally:
                    signal.alarm(0)
                    for changed, data in originals.items():
                        changed.write_bytes(data)
        finally:
            os.chdir(before)
    return dict(counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=700, help="mutated files (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run_cases(arguments.runs, arguments.seed)))
