"""The model card of a run folder: what it was trained on and how, how good it is, and which videos must not be used to test it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aha.core.files import read_json
from aha.errors import UserError
from aha.results.beside import NO_RESULT, by_table, leaderboard_row, markdown, rows_of

HEAD = """---
library_name: {library}
pipeline_tag: video-text-to-text
license: apache-2.0
{base}tags: [video-highlight-detection, streaming, lora]
---
# {title}

{what} Task-conditioned highlight scores for a video stream: how relevant each frame is for a query, how unsure that is, and whether
enough has been seen to speak.

```python
from aha.models import AhaModel

{code}
```
"""
MERGED_CODE = 'model = AhaModel.from_pretrained("this folder or hub id")'
ADAPTER_CODE = 'model = AhaModel.from_base("{base}", "this folder or hub id")'


def optional_json(path: Path) -> Any:
    return read_json(path, "run record") if path.is_file() else None


def last_lines(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last training and the last validation line of a run's train.log ({} where there is none)."""
    training: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        record = json.loads(line)
        if "loss" in record:
            training = record
        if "eval_kendall_tau" in record:
            validation = record
    return training, validation


def without_folders(value: Any) -> Any:
    """A path of this machine is shown by its last part; everything else, hub ids too, as it is."""
    from aha.models.adapters import portable_base  # torch: `aha merge --help` needs none

    return portable_base(value) if isinstance(value, str) and (os.path.isabs(value) or Path(value).exists()) else value


def table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def numbers(metrics: dict[str, Any]) -> dict[str, str]:
    """Flat "protocol metric: value" rows of a metrics file of `aha.eval`."""
    protocols = metrics.get("protocols")
    if not isinstance(protocols, dict):
        raise UserError("the metrics file has no protocols; give one that python -m aha.eval.tvsum --output wrote.")
    found = {}
    for protocol, values in protocols.items():
        for metric, value in values.items():
            if isinstance(value, dict) and isinstance(value.get("mean"), (int, float)):
                found[f"{protocol}, {metric}"] = f"{value['mean']:.4f}"
    return found


def results_section(results: Mapping[str, Any]) -> str:
    """What scripts/reproduce.sh found: the warning where it is no result, the leaderboard row, every number with its protocol and the
    published one beside it, and how it was made."""
    run, chosen = results["run"], results["run"]["settings"]
    parts = ["## Results"]
    if run["no_result"]:
        parts.append(f"> **{NO_RESULT}: {'; '.join(run['no_result'])}. Quote none of these numbers.**")
    how = f"`bash scripts/reproduce.sh --tables {','.join(chosen['tables'])}`, {run['finished'][:10]}, commit {', '.join(run['commits'])}"
    parts.append(
        f"Scored as `{chosen['model']}` ({', '.join(run['weights']['sources'])}) by {how}. Intervals: 95%, bootstrap over videos. A "
        "published number is to be compared with where the last column says yes."
    )
    parts.append(leaderboard_row(chosen["model"], results["leaderboard"]))
    for (table_id, title), rows in by_table(rows_of(results, "the results file")).items():
        parts.append(f"### Table {table_id}: {title}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def sources_section(sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The data sets of mixtures: {what was trained on them: entries}."""
    lines = []
    for what, entries in sources.items():
        lines.append(f"{what}:\n")
        lines += [f"- {entry['name']} ({entry['type']}), {_origin(entry)}" for entry in entries]
        lines.append("")
    return "## Data sets trained on\n\n" + "\n".join(lines).rstrip() + "\n\nTest sets of the same data sets are no new domain."


def _origin(entry: Mapping[str, Any]) -> str:
    return str(entry.get("source") or Path(str(entry["videos"])).name)


def title_of(run: Path) -> str:
    """The folder's name; of a repository in the hub's cache (models--ORG--NAME/snapshots/REVISION) ORG/NAME."""
    run = run.resolve()
    return run.parent.parent.name.removeprefix("models--").replace("--", "/") if run.parent.name == "snapshots" else run.name


def model_card(
    run: str | os.PathLike, *, base: str, merged: bool, metrics: dict[str, Any] | None = None, results: Mapping[str, Any] | None = None,
    sources: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:  # fmt: skip
    """Markdown for the run folder (or adapter folder) `run`. metrics: a metrics file of `aha.eval`, read; results: a results.json of
    scripts/reproduce.sh, read; sources: {what was trained: entries of its mixture}, where no run record says it. Raises UserError."""
    from aha.models.adapters import portable_base

    run, base = Path(run), portable_base(base)
    settings, versions = optional_json(run / "settings.json") or {}, optional_json(run / "versions.json") or {}
    trained_on = optional_json(run / "trained_on_videos.json")
    code = MERGED_CODE if merged else ADAPTER_CODE.format(base=base)
    what = "Whole model: base and adapter merged." if merged else f"LoRA adapter (PEFT layout) for `{base}`."
    hub_base = f"base_model: {base}\n" if base.count("/") == 1 and not Path(base).exists() else ""
    parts = [HEAD.format(library="aha-video" if merged else "peft", base=hub_base, title=title_of(run), what=what, code=code).strip()]
    if settings:
        mixture = settings.get("mixture", [])
        line = "- {name} ({type}): {samples} samples, {fps} frames/s, at most {max_num_frames} frames each, weight {weight}"
        lines = [line.format(**entry) for entry in mixture]
        parts.append("## Training data\n\n" + "\n".join(lines or ["- see settings.json"]))
        shown = {**settings["model"], **settings["data"], **settings["training"]}
        parts.append("## Settings\n\n" + table({name: without_folders(value) for name, value in shown.items() if value is not None}))
    training, validation = last_lines(run / "train.log")
    if training:
        values = {name: f"{value:.4f}" for name, value in training.items() if name == "loss" or name.endswith("_weighted")}
        parts.append("## Last training step\n\n" + table({"step": training["step"], **values}))
    if validation:
        parts.append("## Validation\n\n" + table({name: value for name, value in validation.items() if name.startswith("eval_")}))
    if metrics is not None:
        parts.append("## Benchmark results\n\n" + table(numbers(metrics)))
    if results is not None:
        parts.append(results_section(results))
    if sources:
        parts.append(sources_section(sources))
    if trained_on is not None:
        parts.append(f"## Videos trained on ({len(trained_on)})\n\nDo not test on these: " + ", ".join(trained_on))
    if versions:
        packages = ", ".join(f"{name} {version}" for name, version in versions["packages"].items() if version)
        parts.append(f"## Software\n\ncommit {versions['git_commit']}, Python {versions['python']}, {packages}")
    return "\n\n".join(parts) + "\n"


def upload(folder: str | os.PathLike, name: str, *, private: bool = True) -> str:
    """Push `folder` (without checkpoints and wandb files) to the hub repository `name`; returns its address. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    ignored = ["checkpoint-*/**", "partial-*/**", "wandb/**", "runs/**", ".*", "wandb_run_id"]
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=os.fspath(folder), repo_id=name, ignore_patterns=ignored).commit_url)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} could not be pushed as {name} ({reason}); check the name, HF_TOKEN and the network.") from error
