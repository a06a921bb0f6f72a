"""The run: one process for each command of the tables, its output whole or absent, and a stamp of what it was made of.

A step is done when OUT/steps/NAME.json holds the stamp that its command, weights, data and inputs give now, and its output is there; else
it is run. So a killed run goes on with the same command, scoring at the video where it stopped, and what was made with other settings,
other weights or fewer videos is made again. A step that fails does not end the run: what does not need its output goes on.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aha.core.content import content_hash
from aha.core.environment import die_with_parent, git_commit
from aha.core.files import read_json, write_json
from aha.core.prediction import has_uncertainty
from aha.errors import UserError
from aha.eval import load_task
from aha.eval.annotations import find_tvsum
from aha.reproduce.check import scores_of
from aha.reproduce.tables import Evaluation, Run, Score, Table, evaluation_command, score_command
from aha.scoring.known_models import KNOWN, cached, is_hub_id
from aha.scoring.model_choice import ModelChoice
from aha.video.library import list_videos, video_folder

ENDED = (
    -signal.SIGKILL,
    -signal.SIGTERM,
    -signal.SIGINT,
    128 + signal.SIGTERM,
    128 + signal.SIGINT,
)  # by somebody
BEAT_S = 5.0  # how often a running step notes its time, so that a killed one's is not lost


@dataclass
class Step:
    """One command (without `python`) and its output. spread: one process for each GPU. failure: why it has no output."""

    name: str
    words: list[str]
    output: Path
    stamp: str
    spread: bool = False
    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # of its record: seconds, frames, videos, commit

    @property
    def command(self) -> str:
        return " ".join(["python", *self.words])


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def data_key(dataset: str, run: Run) -> str:
    """Changes with the content of the annotation files, and with names and content of the videos that are there."""
    task, folder = load_task(dataset), Path(run.folder(dataset))
    videos = video_folder(folder, task.data.videos)
    named = [folder / file.path for file in task.data.files] + ([find_tvsum(folder)] if dataset == "tvsum" else [])
    files = [path for one in named for path in (sorted(one.iterdir()) if one.is_dir() else [one]) if path.is_file()]
    annotations = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return digest(annotations, [(name, content_hash(videos / name)) for name in list_videos(videos)])


def execute(words: Sequence[str], log: Path, beat: Callable[[float], None]) -> int:
    """Run `python WORDS` with its output in `log`; its exit code. It dies with this process. beat: called with the seconds so far."""
    begin = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        try:
            while True:
                try:
                    return process.wait(BEAT_S)
                except subprocess.TimeoutExpired:
                    beat(time.monotonic() - begin)
        finally:
            if process.poll() is None:  # Ctrl-C, SIGTERM
                process.terminate()
                process.wait()


def last_sentence(log: Path) -> str:
    """What a failed command said: its error, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


def say_at_once(text: str) -> None:
    print(text, flush=True)


class Runner:
    """Runs the steps of the tables in their order; each once, whatever number of tables needs it.

    say: prints a line. gpus: processes of a scoring step. steps: name -> step, in the order in which they were met.
    """

    def __init__(self, run: Run, gpus: int, say: Callable[[str], None] = say_at_once):
        self.run, self.gpus, self.say = run, max(gpus, 1), say
        self.out = Path(run.out)
        self.steps: dict[str, Step] = {}
        self.weights: Any = None
        self.uncertainty: bool | None = None
        self.data: dict[str, str] = {}
        for name in ("steps", "logs", "predictions", "numbers"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

    # ---- one step ----

    def do(self, step: Step) -> Step:
        if step.name in self.steps:
            return self.steps[step.name]
        self.steps[step.name] = step
        record = self.out / "steps" / f"{step.name}.json"
        begun = self.out / "steps" / f"{step.name}.begun.json"
        found = _record(record)
        if found.get("stamp") == step.stamp and step.output.exists():
            step.facts = found
            self.say(f"{step.name}: done before")
            return step
        record.unlink(missing_ok=True)
        before = _record(begun)
        spent = float(before["seconds"]) if before.get("stamp") == step.stamp else 0.0
        log = self.out / "logs" / f"{step.name}.log"
        self.say(f"{step.name}: {step.command}")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.gpus)]
        words = [*launcher, *step.words] if step.spread and self.gpus > 1 else step.words
        begin = time.monotonic()

        def beat(seconds: float) -> None:
            write_json(begun, {"stamp": step.stamp, "seconds": spent + seconds})
            if sys.stdout.isatty():
                done = sum(path.read_bytes().count(b"\n") for path in step.output.parent.glob(f"{step.output.name}.parts-*/rank-*.jsonl"))
                print(f"\r  {done} videos, {(spent + seconds) / 60:.1f} min ", end="", flush=True)

        code = execute(words, log, beat)
        seconds = spent + time.monotonic() - begin
        if code in ENDED:
            raise UserError(f"{step.name} was ended from outside (exit code {code}); the same command goes on.")
        if code != 0 or not step.output.exists():
            step.failure = last_sentence(log) or f"exit code {code}"
            self.say(f"{step.name}: FAILED: {step.failure} (all of it: {log})")
            return step
        step.facts = {"stamp": step.stamp, "command": step.command, "seconds": round(seconds, 1), "commit": git_commit(), **_counted(step)}
        write_json(record, step.facts)
        begun.unlink(missing_ok=True)
        return step

    # ---- the kinds of steps ----

    def fetch(self) -> None:
        """The weights, by name, where they are not here yet. Raises UserError: nothing else could be done."""
        name = self.run.model
        sources = KNOWN[name].sources() if name in KNOWN else [name]
        if any(is_hub_id(source) and not cached(source) for source in sources):
            (self.out / "steps" / "weights.json").unlink(missing_ok=True)
            step = self.do(Step("weights", ["-m", "aha", "models", "get", name], self.out, digest(name, time.time())))
            if step.failure:
                raise UserError(step.failure)
        choice = ModelChoice(model=name)
        self.weights = digest(choice.weights_key())

    def score(self, score: Score) -> Step:
        words = score_command(score, self.run)
        if score.dataset not in self.data:
            self.data[score.dataset] = data_key(score.dataset, self.run)
        stamp = digest(words, self.weights, self.data[score.dataset])
        step = self.do(Step(f"score-{score.name}", words, Path(self.run.predictions(score)), stamp, spread=True))
        if self.uncertainty is None and not step.failure:
            self.uncertainty = has_uncertainty(step.output)
        return step

    def evaluate(self, evaluation: Evaluation, needed: Sequence[Step]) -> Step | None:
        """None where the row cannot be: the model lacks the head, or the videos are too few to tune on others of them."""
        if evaluation.needs_uncertainty and not self.uncertainty:
            return None
        if (evaluation.grid or evaluation.after) and self.run.folds == 0:
            return None
        words = evaluation_command(evaluation, self.run, self.uncertainty is not False)
        step = Step(f"eval-{evaluation.name}", words, Path(self.run.numbers(evaluation)), digest(words, [one.stamp for one in needed]))
        if lacking := [one for one in needed if one.failure]:
            step.failure = f"{lacking[0].name} failed: {lacking[0].failure}"
            return self.steps.setdefault(step.name, step)
        return self.do(step)

    def table(self, table: Table) -> None:
        scored = {score: self.score(score) for score in table.scores}
        for evaluation in table.evaluations:
            before = self.steps.get(f"eval-{evaluation.after}")
            self.evaluate(evaluation, [scored[evaluation.of], *([before] if before else [])])

    @property
    def failures(self) -> list[Step]:
        return [step for step in self.steps.values() if step.failure]


def _record(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, "record of a step") if path.is_file() else {}
    except UserError:  # damaged: the step is run again
        return {}
    return found if isinstance(found, dict) else {}


def _counted(step: Step) -> dict[str, int]:
    if not step.spread:
        return {}
    entries = read_json(step.output, "prediction file")
    return {"videos": len(entries), "frames": sum(len(entry["debug_data"]) for entry in entries)}


# ---- before a run ----


def estimate(tables: Sequence[Table], run: Run, rate: float, speaking: float) -> str:
    """Hours by table: frames of its prediction files (those that no table before it has made) by frames a second of one GPU."""
    from aha.reproduce.check import frames_of
    from aha.results.table import block

    rows, made, total = [], set[Score](), 0.0
    for table in tables:
        own = [score for score in table.scores if score not in made]
        made |= set(own)
        counts = [(frames_of(score, run), speaking if score.dataset in ("magqa", "youcook2") else rate) for score in own]
        hours = sum(frames / speed for frames, speed in counts) / 3600
        total += hours
        rows.append((f"{table.id}: {table.title}", [str(len(own)), f"{sum(frames for frames, _ in counts):,}", f"{hours:.2f}"]))
    everything = sum(frames_of(score, run) for score in scores_of(tables))
    rows.append(("all", [str(len(made)), f"{everything:,}", f"{total:.2f}"]))
    title = f"hours on one GPU at {rate:g} frames/s, {speaking:g} where the model speaks (tables 8, 9)"
    tail = "Calculated, not measured: without loading (once for each scoring), slow disks and the judge; features that are kept count anew."
    return block(title, ["scorings", "frames", "hours"], rows) + "\n" + tail


def settings(run: Run, tables: Sequence[Table]) -> dict[str, Any]:
    return {**asdict(run), "tables": [table.id for table in tables]}
