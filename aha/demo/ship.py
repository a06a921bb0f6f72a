"""Make the adapter that `aha highlights`, `aha watch` and `aha demo` use when no model is named, out of a demo run.

    bash scripts/train_on_tvsum.sh --demo                 # trains outputs/demo/run-seed0
    python -m aha.demo.ship --run outputs/demo/run-seed0  # writes aha/demo/checkpoints/aha-demo

The weights are stored as float16, 0.5 MB; the tokenizer is that of the base beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from aha.core.files import atomic_path, read_json, write_text
from aha.errors import UserError, run_command
from aha.scoring.model_choice import DEMO_ADAPTER, DEMO_BASE

CARD = """---
library_name: peft
license: apache-2.0
---
# aha-demo

The embedded demo model's adapter, for `llava-onevision-qwen2-demo-ov` beside it: what `bash scripts/train_on_tvsum.sh --demo` trained with
{settings}, stored as float16 by `python -m aha.demo.ship`. It knows only the project's generated world of coloured shapes.

Held-out videos of that run:

{table}
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m aha.demo.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="outputs/demo/run-seed0", help="folder of a finished demo run (default %(default)s)")
    parser.add_argument("--output", default=str(DEMO_ADAPTER), help="folder to write (default: the embedded one)")
    args = parser.parse_args(argv)
    import torch  # here, because --help needs none
    from safetensors.torch import load_file, save_file

    run, output = Path(args.run), Path(args.output)
    for name in ("adapter_model.safetensors", "adapter_config.json", "settings.json", "table.md"):
        if not (run / name).is_file():
            raise UserError(f"{run / name} is not there; finish the run with bash scripts/train_on_tvsum.sh --demo first.")
    config = read_json(run / "adapter_config.json", "adapter config")
    config["base_model_name_or_path"] = DEMO_BASE.name
    settings = read_json(run / "settings.json", "settings of the run")
    flags = {**settings["data"], **settings["training"]}
    shown = ", ".join(f"--{name} {flags[name]}" for name in ("seed", "fold", "num_train_epochs", "learning_rate"))
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in load_file(run / "adapter_model.safetensors").items()}
    with atomic_path(output / "adapter_model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_text(output / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    write_text(output / "README.md", CARD.format(settings=shown, table=(run / "table.md").read_text(encoding="utf-8").strip()))
    print(f"wrote {output} ({sum(path.stat().st_size for path in output.iterdir()) / 1e6:.2f} MB)")


if __name__ == "__main__":
    run_command(main)
