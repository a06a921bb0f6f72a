"""What a run leaves on disk beside the weights: loss_history.jsonl (exact, a line per optimizer step) and train.log (all that was logged).

Both are JSON Lines. A resumed run first drops the lines after its checkpoint, so that the files are those of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from aha.core.files import write_text


def drop_after(path: Path, step: int) -> None:
    """Keep the lines of a JSON Lines file up to optimizer step `step`; a line that a kill cut in half goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("step", 0) <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def plain(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class History:
    """Writes both files; does nothing on ranks other than 0."""

    def __init__(self, folder: str, enabled: bool = True):
        self.losses = Path(folder) / "loss_history.jsonl"
        self.log = Path(folder) / "train.log"
        self.enabled = enabled

    def start(self, step: int) -> None:
        """The run begins, or goes on, after optimizer step `step`."""
        if self.enabled:
            for path in (self.losses, self.log):
                drop_after(path, step)

    def _append(self, path: Path, record: dict[str, Any]) -> None:
        if self.enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: plain(value) for key, value in record.items()}, ensure_ascii=False) + "\n")

    def step(self, step: int, values: dict[str, Any]) -> None:
        self._append(self.losses, {"step": step, **values})

    def line(self, step: int, values: dict[str, Any]) -> None:
        self._append(self.log, {"step": step, "time": round(time.time(), 3), **values})

    def event(self, name: str, step: int, **values: Any) -> None:
        """Something that is no measurement: a broken sample, a checkpoint, the end. Written by every rank that has one."""
        record = {"step": step, "time": round(time.time(), 3), "event": name, **values}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


class LogFile(TrainerCallback):
    """Everything that is logged, into train.log."""

    def __init__(self, history: History):
        self.history = history

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            self.history.line(state.global_step, dict(logs))


class Start(TrainerCallback):
    """Where the time before the first step went, by part: on the console, and in train.log as the event "started"."""

    def __init__(self) -> None:
        self.last = time.time()
        launched = os.environ.get("AHA_LAUNCHED")  # by scripts/launch.py
        self.seconds: dict[str, float] = {} if launched is None else {"launch": round(self.last - float(launched), 3)}

    def mark(self, part: str) -> None:
        """What was done since the last mark was this part."""
        now = time.time()
        self.seconds[part], self.last = round(now - self.last, 3), now

    def watch(self, history: History) -> Start:
        self.history = history
        return self

    def on_train_begin(self, args, state, control, **kwargs):
        self.mark("engine")
        if state.is_world_process_zero:
            parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
            print(f"ready for the first step after {sum(self.seconds.values()):.1f} s: {parts}", flush=True)
            self.history.event("started", step=state.global_step, seconds=self.seconds)
