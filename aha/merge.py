"""Merge a LoRA adapter into its base model: a folder in the hub's layout that needs no adapter any more.

    python -m aha.merge --model outputs/aha_tvsum --output outputs/aha_merged          # its base is the one that it names
    python -m aha.merge --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov \\
        --lora_pretrained outputs/aha_tvsum --output outputs/aha_merged

The folder holds config.json, safetensors, the tokenizer and a model card with data, settings, metrics (--metrics), the tables of
scripts/reproduce.sh (--results) and what was trained on: the run's own record, or of a published adapter its mixture;
AhaModel.from_pretrained and every command's --llm_pretrained take it. --push_to_hub ORG/NAME uploads it as well.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from aha.core.environment import ROOT
from aha.core.files import check_output, finish_output, open_output
from aha.core.flags import add_flags
from aha.data.mixture import read_config
from aha.errors import UserError, run_command
from aha.results.beside import read_results
from aha.results.document import read_document
from aha.scoring.known_models import KNOWN
from aha.scoring.model_choice import DTYPES, WEIGHT_FLAGS, ModelChoice, base_and_adapter
from aha.training.card import model_card, upload

MMDUET = {"MMDuet, which it starts from": "mmduetit.json"}
MIXTURES = {  # published adapter -> what was trained -> its mixture in configs/datasets
    "mmduet-7b": {"MMDuet": "mmduetit.json"},
    "aha-7b": {"Aha": "aha.json", **MMDUET},
}


def sources_of(adapter: str, mixture: Path | None) -> dict[str, list[dict[str, Any]]]:
    """What the adapter was trained on, for the model card: {name of the training: entries of its mixture file}.

    The mixture is `mixture` (in our form, or that of MMDuet's and Aha's files) where it is given, else, for the two published adapters,
    that of configs/datasets. Raises UserError for a mixture that cannot be read.
    """
    if mixture is not None:
        return {f"{adapter} ({mixture.name})": read_config(mixture)}
    known = next((name for name, model in KNOWN.items() if adapter in (model.adapter, *model.folders)), None)
    files = {name: ROOT / f"configs/datasets/{file}" for name, file in MIXTURES.get(known or "", {}).items()}
    return {name: read_config(path) for name, path in files.items() if path.is_file()}


def results_of(path: Path, adapter: str) -> dict[str, Any]:
    """A results.json of scripts/reproduce.sh. Raises UserError where it is of another model: the card would hold that one's numbers."""
    results = read_results(path)
    named = [source.split(" at ")[0] for source in results["run"]["weights"]["sources"]]
    if adapter not in named and Path(adapter).resolve() not in [Path(name).resolve() for name in named]:
        raise UserError(f"{path} holds the numbers of {' + '.join(named)}, not of {adapter}; give that model's results.")
    return results


def merge(
    base: str, adapter: str, output: Path, *, dtype: str, device: str, metrics: dict | None,
    results: dict | None = None, mixture: Path | None = None,
) -> None:  # fmt: skip
    """Write the merged model to `output`. LoRA products are computed in float32 and rounded once. Raises UserError."""
    import torch
    from llava_next import resolve_folder

    from aha.models import AhaModel
    from aha.streaming.session import tokenizer_of
    from aha.training.model import check_base

    adapter_folder = resolve_folder(adapter)
    check_base(adapter_folder, resolve_folder(base), base)
    check_output(output, overwrite=False, flag="empty it")
    model = AhaModel.from_base(base, adapter_folder, dtype=getattr(torch, dtype), device=device, merge=True)
    tokenizer = tokenizer_of(model)
    sources = {} if mixture is None and (adapter_folder / "settings.json").is_file() else sources_of(adapter, mixture)
    card = model_card(adapter_folder, base=base, merged=True, metrics=metrics, results=results, sources=sources)
    open_output(output, overwrite=False, flag="empty it")
    model.save_pretrained(output, tokenizer=tokenizer, card=card)
    for name in ("settings.json", "versions.json", "trained_on_videos.json"):
        if (adapter_folder / name).is_file():
            shutil.copy2(adapter_folder / name, output / name)
    finish_output(output)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, ModelChoice, only=WEIGHT_FLAGS)
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="type of the weights (default %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to merge (default %(default)s)")
    parser.add_argument("--metrics", type=Path, help="metrics file of python -m aha.eval.*, for the model card")
    parser.add_argument("--results", type=Path, help="results.json of scripts/reproduce.sh, for the model card")
    parser.add_argument(
        "--mixture", type=Path, help="what the adapter was trained on, for the model card: a mixture file of ours, MMDuet's or Aha's form"
    )
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="also upload the folder (private repository; needs HF_TOKEN)")
    args = parser.parse_args(argv)
    base, adapter = base_and_adapter(args)
    metrics = None if args.metrics is None else read_document(args.metrics)
    results = None if args.results is None else results_of(args.results, adapter)
    if args.mixture is not None:
        read_config(args.mixture)  # a wrong one is said before the output is made
    check_output(args.output, overwrite=False, flag="empty it")  # before a download
    base_and_adapter(args, download=True)
    merge(
        base, adapter, args.output, dtype=args.dtype, device=args.device, metrics=metrics,
        results=results, mixture=args.mixture,
    )  # fmt: skip
    print(f"merged model: {args.output}")
    if args.push_to_hub:
        print(f"uploaded: {upload(args.output, args.push_to_hub)}")


if __name__ == "__main__":
    run_command(main)
