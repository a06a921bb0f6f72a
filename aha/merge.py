"""Merge a LoRA adapter into its base model: a folder in the hub's layout that needs no adapter any more.

    python -m aha.merge --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov \\
        --lora_pretrained outputs/aha_tvsum --output outputs/aha_merged

The folder holds config.json, safetensors, the tokenizer and a model card with data, settings, metrics (--metrics) and trained-on videos;
AhaModel.from_pretrained and every command's --llm_pretrained take it. --push_to_hub ORG/NAME uploads it as well.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from aha.core.files import finish_output, open_output
from aha.errors import run_command
from aha.results.document import read_document
from aha.training.card import model_card, upload


def merge(base: str, adapter: str, output: Path, *, dtype: str, device: str, metrics: dict | None) -> None:
    """Write the merged model to `output`. LoRA products are computed in float32 and rounded once. Raises UserError."""
    import torch
    from llava_next import resolve_folder

    from aha.models import AhaModel
    from aha.streaming.session import tokenizer_of
    from aha.training.model import check_base

    adapter_folder = resolve_folder(adapter)
    check_base(adapter_folder, resolve_folder(base), base)
    model = AhaModel.from_base(base, adapter_folder, dtype=getattr(torch, dtype), device=device, merge=True)
    tokenizer = tokenizer_of(model)
    card = model_card(adapter_folder, base=base, merged=True, metrics=metrics)
    model.save_pretrained(output, tokenizer=tokenizer, card=card)
    for name in ("settings.json", "versions.json", "trained_on_videos.json"):
        if (adapter_folder / name).is_file():
            shutil.copy2(adapter_folder / name, output / name)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm_pretrained", required=True, help="base checkpoint: folder or hub id")
    parser.add_argument("--lora_pretrained", required=True, help="adapter: run folder, checkpoint folder or hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="type of the weights (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to merge (default %(default)s)")
    parser.add_argument("--metrics", type=Path, help="metrics file of python -m aha.eval.*, for the model card")
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="also upload the folder (private repository; needs HF_TOKEN)")
    args = parser.parse_args(argv)
    metrics = None if args.metrics is None else read_document(args.metrics)
    open_output(args.output, overwrite=False, flag="empty it")
    merge(args.llm_pretrained, args.lora_pretrained, args.output, dtype=args.dtype, device=args.device, metrics=metrics)
    finish_output(args.output)
    print(f"merged model: {args.output}")
    if args.push_to_hub:
        print(f"uploaded: {upload(args.output, args.push_to_hub)}")


if __name__ == "__main__":
    run_command(main)
