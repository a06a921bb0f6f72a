"""Scoring a benchmark on a Ray cluster: what `python -m aha.score --dataset NAME --engine ray` does.

    ray start --head                       # on the first machine; `ray start --address HEAD:6379` on the others
    python -m aha.score --llm_pretrained BASE --lora_pretrained ADAPTER --dataset hisum --engine ray --workers 16 --output hisum.json

Each worker loads the model once and takes the longest video that is left. A worker that dies is started again and its video scored anew.
Records come back to this process, which writes them to the same part file as without Ray: a killed job goes on where it stopped, with or
without Ray. Only the videos and the checkpoint must be reachable from every machine under the same path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from aha.conversation import Query
from aha.core.extras import need
from aha.errors import UserError
from aha.scoring.config import ScoreConfig
from aha.scoring.dataset import Item, record_of
from aha.scoring.model_choice import ModelChoice
from aha.scoring.offline import Scorer


class Worker:
    """One process of the cluster with a model of its own; called with batches of one item."""

    def __init__(self, choice: ModelChoice, config: ScoreConfig, trained_on: set[str]):
        self.scorer, self.trained_on = Scorer(*choice.load(), config), trained_on

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        fields = json.loads(batch["item"][0])
        item = Item(**{**fields, "queries": tuple(Query(**query) for query in fields["queries"])})
        record = record_of(self.scorer, item, lambda: self.scorer.open(item.path), self.trained_on)
        return {"record": [json.dumps({**record, "worker": os.getpid()})]}


def score_items_on_ray(
    choice: ModelChoice, config: ScoreConfig, workers: int | None, items: Sequence[Item], trained_on: set[str],
    write: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Score `items` on the cluster named by RAY_ADDRESS, or on one made on this machine; `write` each record as it comes."""
    need("ray", "ray", "--engine ray")
    import ray

    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1.")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_gpu = gpus > 0 and not (choice.device or "cuda").startswith("cpu")
    workers = min(workers or (gpus if on_gpu else 2), len(items))
    rows = [{"item": json.dumps(asdict(item))} for item in items]
    records = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker, fn_constructor_args=(choice, config, trained_on), batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1, num_gpus=1 if on_gpu else 0, max_restarts=-1, max_task_retries=-1,
    )  # fmt: skip
    frames = {item.key: config.expected_frames(item.duration) for item in items}
    try:
        with tqdm(total=sum(frames.values()), unit=" frames", desc=f"{workers} workers: {len(items)} videos", disable=None) as bar:
            for row in records.iter_rows():
                record = json.loads(row["record"])
                write(record)
                bar.update(frames[record["key"]])
    except (ray.exceptions.RayTaskError, ray.exceptions.ActorDiedError) as error:
        reason = re.search(r"UserError: (.+)", str(error))  # the model could not be loaded, for one; Ray keeps the text of errors only
        if reason is None:
            raise
        raise UserError(reason[1]) from error
    finally:
        if started_here:
            ray.shutdown()
