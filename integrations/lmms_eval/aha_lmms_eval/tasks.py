"""Write a highlight benchmark as an lmms-eval task folder, from the data set as the project reads it.

    python -m aha_lmms_eval.tasks tvsum --data_root datasets/tvsum --output outputs/lmms_eval
    python -m lmms_eval --model aha --model_args pretrained=BASE,adapter=ADAPTER --include_path outputs/lmms_eval --tasks tvsum

The folder holds `tvsum.yaml` and `tvsum.jsonl` (one video a line, paths absolute). Likewise `hisum`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from aha.core.files import write_text
from aha.errors import UserError, run_command
from aha.eval import load_task
from aha.eval.annotations import find_tvsum, read_tvsum
from aha.eval.data_hisum import read_metadata
from aha.scoring.dataset import task_items
from aha_lmms_eval.highlights import HISUM_METRICS, TVSUM_METRICS

METRICS = {"tvsum": TVSUM_METRICS, "hisum": HISUM_METRICS}
YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function aha_lmms_eval.highlights.doc_to_visual
doc_to_text: !function aha_lmms_eval.highlights.doc_to_text
doc_to_target: "query"
process_results: !function aha_lmms_eval.highlights.process_{name}
generation_kwargs:
  max_new_tokens: 512
  temperature: 0
  do_sample: false
metric_list:
{metrics}metadata:
  version: 1.0
"""


def documents(name: str, root: Path, fold: int | None) -> list[dict]:
    """One dictionary for each video that is there. Raises UserError where none is."""
    items, missing = task_items(load_task(name), root, fold=fold)
    if name == "tvsum":
        annotations = find_tvsum(root).resolve()
        lengths = {video_id: video.length_s for video_id, video in read_tvsum(annotations).items()}
    else:
        annotations = (root / "annotations" / "mr_hisum.h5").resolve()
        lengths = {item.key: item.duration for item in items}
    for video_id, reason in missing.items():
        print(f"left out {video_id}: {reason}")
    if not items:
        raise UserError(f"no video of {name} under {root} can be read; `python -m aha.data.prepare {name}` says what is missing.")
    keys = read_metadata(root / "annotations" / "metadata.csv").youtube if name == "hisum" else {}
    return [
        {
            "video_id": item.video_id, "key": keys.get(item.video_id, item.video_id), "video": str(Path(item.path).resolve()),
            "query": " ".join(query.text for query in item.queries), "seconds": lengths.get(item.key, item.duration),
            "annotations": str(annotations),
        }
        for item in items
    ]  # fmt: skip


def write_task(name: str, root: Path, output: Path, fold: int | None = None) -> Path:
    """Write the task's two files; returns the YAML's path."""
    rows = documents(name, root, fold)
    data = (output / f"{name}.jsonl").resolve()
    write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    metrics = "".join(
        f"  - metric: {metric}\n    aggregation: !function aha_lmms_eval.highlights.mean\n    higher_is_better: true\n"
        for metric in METRICS[name]
    )
    write_text(output / f"{name}.yaml", YAML.format(name=name, data=json.dumps(str(data)), metrics=metrics))
    print(f"{len(rows)} videos -> {output / f'{name}.yaml'}")
    return output / f"{name}.yaml"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m aha_lmms_eval.tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=list(METRICS), help="which benchmark")
    parser.add_argument("--data_root", metavar="DIR", help="folder of the data set (default datasets/NAME)")
    parser.add_argument("--fold", type=int, help="tvsum: only the held-out videos of this fold, 0 to 4")
    parser.add_argument(
        "--output", default="outputs/lmms_eval", metavar="DIR", help="task folder, for --include_path (default %(default)s)"
    )
    args = parser.parse_args(argv)
    write_task(args.dataset, Path(args.data_root or Path("datasets") / args.dataset), Path(args.output), args.fold)


if __name__ == "__main__":
    run_command(main)
