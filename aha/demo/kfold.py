"""The k-fold run on the demo's data set: what `bash scripts/kfold_tvsum.sh --demo` calls.

python -m aha.demo.kfold outputs/kfold-demo                       # makes the data set and its five splits
python -m aha.demo.kfold outputs/kfold-demo --train 3 [flags]     # trains split 3 with the trainer and DeepSpeed engine of the full run
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from aha.core.files import write_json
from aha.core.flags import finite
from aha.core.folds import folds
from aha.demo.run import EPOCHS, prepare, training_command
from aha.errors import run_command
from aha.eval.annotations import read_tvsum


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.demo.kfold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="folder of the run")
    parser.add_argument("--train", type=int, metavar="K", help="train split K")
    parser.add_argument("--epochs", type=finite, default=EPOCHS, help="passes over the training videos (default %(default)s)")
    args, extra = parser.parse_known_args(argv)
    output = Path(args.output)
    splits = output / "splits.json"
    if args.train is None:
        videos = read_tvsum(prepare(output))
        tests = folds({video_id: video.category for video_id, video in videos.items()})
        write_json(splits, [{"test_keys": test, "train_keys": [i for i in videos if i not in test]} for test in tests])
        return
    held_out = ("--splits", str(splits), "--split", str(args.train))
    command = training_command(output / "tvsum", output / f"split-{args.train}", 0, args.epochs, extra, held_out)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.execv(command[0], command)


if __name__ == "__main__":
    run_command(main)
