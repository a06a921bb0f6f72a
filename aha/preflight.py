"""What a training run lacks, all at once, before any model is loaded. `scripts/train_on_tvsum.sh` calls it first.

    python -m aha.preflight --dataset_config configs/datasets/tvsum.json --lora_pretrained outputs/mmduet --num_gpus 8

Takes the flags of aha.train (those it does not need are ignored). Exit code 0 and no output if nothing is missing; otherwise 2 and a list:
what, where to get it, where to put it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from aha.core.folds import TooFewVideos
from aha.data.mixture import missing_files
from aha.errors import UserError, run_command
from aha.scoring.known_models import BASE_7B
from aha.scoring.model_choice import base_and_adapter

ADAPTER_HINTS = {
    "outputs/mmduet": "download wangyueqian/MMDuet from the Hugging Face hub: hf download wangyueqian/MMDuet --local-dir outputs/mmduet",
}


def hub_answers() -> bool:
    """Whether the hub's address accepts a connection (the hub client itself would retry for half a minute). A proxy counts as yes."""
    from huggingface_hub import constants

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or (443 if address.scheme == "https" else 80)), timeout=5).close()
    except OSError:
        return False
    return True


def missing_base(name: str) -> str | None:
    """A line if the base checkpoint is neither a folder with weights, nor in the hub cache, nor to be had from the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return None
        return f"base model: {name} holds no config.json and safetensors files; put a LLaVA-OneVision-Qwen2 checkpoint there"
    if name.count("/") != 1 or path.parent.is_dir():
        return f"base model: {name} is neither a folder nor a hub id; check --llm_pretrained"
    get = f"hf download {name} (into $HF_HOME; 7B weights are 16 GB), or give a folder with --llm_pretrained"
    return missing_on_hub(name, "config.json", "base model", get, "--llm_pretrained")


def missing_on_hub(name: str, settings: str, what: str, get: str, flag: str) -> str | None:
    """A line if the repository is neither whole in the hub's cache, which is asked first, nor to be had from the hub. settings: the JSON
    file that such a repository has."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    unreachable = f"{what}: {name} is not in the hub cache and the hub cannot be reached; on a machine with network: {get}"
    try:
        cached = try_to_load_from_cache(name, settings)
        if isinstance(cached, str) and any(path.suffix in (".safetensors", ".bin") for path in Path(cached).parent.iterdir()):
            return None
        if not hub_answers():
            return unreachable
        hf_hub_download(name, settings, etag_timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        return f"{what}: the hub has no model {name}; check {flag} (gated ones need HF_TOKEN)"
    except LocalEntryNotFoundError:
        return unreachable
    except EntryNotFoundError:
        return f"{what}: {name} on the hub has no {settings}; check {flag}"
    except (HfHubHTTPError, OSError):
        return unreachable
    return None  # aha.train downloads it


def missing_adapter(name: str) -> str | None:
    """A line if the adapter to start from is neither a complete adapter folder nor in reach as a hub id."""
    path = Path(name).expanduser()
    weights = [path / "adapter_model.safetensors", path / "adapter_model.bin"]
    if (path / "adapter_config.json").is_file() and any(w.is_file() for w in weights):
        return None
    if not path.is_dir() and name.count("/") == 1 and not path.parent.is_dir() and name not in ADAPTER_HINTS:
        get = f"hf download {name} (into $HF_HOME), or give a folder with --lora_pretrained"
        return missing_on_hub(name, "adapter_config.json", "adapter", get, "--lora_pretrained")
    hint = ADAPTER_HINTS.get(name, "put a LoRA adapter of MMDuet or Aha there (adapter_config.json, adapter_model.safetensors)")
    return f"MMDuet checkpoint: {name} has no adapter_config.json and adapter_model.safetensors; {hint}"


def missing_gpus(wanted: int | None) -> str | None:
    """A line if there are fewer GPUs than the processes asked for; `wanted` None = at least one, 0 = none are needed."""
    if wanted == 0:
        return None
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found >= (wanted or 1):
        return None
    if found:
        return f"GPUs: {wanted} asked for, {found} found; set NUM_GPUS={found} or free the others (CUDA_VISIBLE_DEVICES)"
    return (
        "GPUs: torch sees none; run on a machine with NVIDIA GPUs and a driver that fits torch (nvidia-smi), "
        "or try the whole thing on the CPU with: bash scripts/train_on_tvsum.sh --demo"
    )


def data_problem(dataset_config: str, fold: int, splits: str | None, split: int | None, validation: bool) -> str | None:
    """What training would say of the data when it starts: annotations, folds or splits that do not fit, no usable video. The videos are
    indexed on the way, as training would do; it then finds the index ready."""
    from aha.data.mixture import load_source, read_config
    from aha.eval.community import chosen_split

    try:
        held_out = chosen_split(splits, split) if splits is not None else None if fold < 0 else fold
        usable = 0
        problems: list = []
        for entry in read_config(dataset_config):
            source = load_source(entry, entry["fps"] or 1.0, entry["max_num_frames"] or 1, "train", held_out, validation)
            usable, problems = usable + len(source.samples), [*problems, *source.problems]
    except TooFewVideos as error:
        return f"data: {error} (or give --splits FILE --split K, such as aha data new writes, or --fold -1: nothing is held out)"
    except UserError as error:
        return f"data: {error}"
    if not usable:
        first = f"; the first of {len(problems)} left out: {problems[0].item}: {problems[0].reason}" if problems else ""
        return f"data: {dataset_config} has no usable video for training{first}"
    return None


def missing_things(dataset_config: str, base: str, adapter: str | None, num_gpus: int | None) -> list[str]:
    """A line for each thing that the run needs and that is not there. Raises UserError for a dataset config that is wrong itself."""
    lines: list[str | None] = list(missing_files(dataset_config))
    lines.append(missing_adapter(adapter) if adapter else None)
    lines.append(missing_base(base))
    lines.append(missing_gpus(num_gpus))
    return [line for line in lines if line]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aha.preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset_config", default="configs/datasets/tvsum.json", help="mixture of data sets (JSON)")
    for name, about in (
        ("--model", "stands for the next two: mmduet-7b, aha-7b (aha models), or an adapter that names its base"),
        ("--llm_pretrained", f"base checkpoint: folder or hub id (default {BASE_7B})"),
        ("--lora_pretrained", "adapter to start from: folder or hub id"),
    ):
        parser.add_argument(name, default=argparse.SUPPRESS, help=about)
    parser.add_argument("--num_gpus", type=int, help="GPUs of this node that will be used (default: at least 1)")
    parser.add_argument("--use_cpu", nargs="?", const="True", default="False", help="the run will be on the CPU: no GPU is needed")
    parser.add_argument("--fold", type=int, default=0, help="which fifth is held out, -1: none (default %(default)s)")
    parser.add_argument("--splits", help="splits file, with --split")
    parser.add_argument("--split", type=int, help="which split of it")
    parser.add_argument("--eval_strategy", default="no", help="as aha.train has it: a validation fold is kept out, too")
    args, _ = parser.parse_known_args(argv)
    num_gpus = 0 if args.use_cpu.lower() in ("true", "1", "yes") else args.num_gpus
    base: str = getattr(args, "llm_pretrained", BASE_7B)
    adapter: str | None = getattr(args, "lora_pretrained", None)
    if hasattr(args, "model"):
        base, adapter = base_and_adapter(args)
    lines = missing_things(args.dataset_config, base, adapter, num_gpus)
    if not missing_files(args.dataset_config):
        validation = args.eval_strategy != "no"
        lines += [line for line in [data_problem(args.dataset_config, args.fold, args.splits, args.split, validation)] if line]
    if lines:
        print(f"{len(lines)} thing{'s are' if len(lines) > 1 else ' is'} missing:", file=sys.stderr)
        for line in lines:
            print(f"  - {line}", file=sys.stderr)
        raise UserError("the run was not started; see the list above and instructions/data.md.")


if __name__ == "__main__":
    run_command(main)
