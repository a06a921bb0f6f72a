"""`aha train --help` without importing transformers, which takes 5 seconds.

Our flags are dataclass fields in arguments.py, whose base class is transformers' TrainingArguments; so that file is not imported here, but
read: name, type, default and help of every field are literals in its source.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("arguments.py")
OTHERS = """
--model NAME stands for --llm_pretrained and --lora_pretrained together: mmduet-7b, aha-7b (aha models), or an adapter that names its base.
Every other flag of transformers' TrainingArguments is there too (--deepspeed FILE, --bf16 True, --max_steps N, --seed N, --eval_strategy
steps, --report_to wandb, --push_to_hub True ...): --help_all lists them, after 5 seconds. --debug shows the traceback of an error.
"""


def literal(value: ast.expr | None, name: str) -> Any:
    """The keyword `name` of a field's `field(default=..., metadata=...)`, which every field of arguments.py has."""
    assert isinstance(value, ast.Call)
    return ast.literal_eval(next(keyword.value for keyword in value.keywords if keyword.arg == name))


def value_of(annotation: ast.expr) -> str:
    """What stands for the value in the help: `float | None` -> FLOAT, `Literal['sdpa', 'eager']` -> sdpa|eager, `list[str]` -> STR ..."""
    kind = ast.unparse(annotation).removesuffix(" | None")
    if kind.startswith("Literal["):
        return "|".join(ast.literal_eval(f"({kind[8:-1]},)"))
    if kind == "bool":
        return "True|False"
    return f"{kind[5:-1].upper()} ..." if kind.startswith("list[") else kind.upper()


def our_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the three dataclasses to `parser`, which is for its help only."""
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if not (isinstance(node, ast.ClassDef) and any(ast.unparse(decorator) == "dataclass" for decorator in node.decorator_list)):
            continue
        group = parser.add_argument_group((ast.get_docstring(node) or "").partition("\n")[0].rstrip("."))
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                default = literal(field.value, "default")
                about = literal(field.value, "metadata")["help"]
                group.add_argument(
                    f"--{ast.unparse(field.target)}",
                    metavar=value_of(field.annotation),
                    help=about.replace("%", "%%") + ("" if default is None else f" (default {default})"),
                )


def help_text(description: str) -> str:
    formatter = argparse.RawDescriptionHelpFormatter
    usage = "torchrun --standalone --nproc_per_node GPUS -m aha.train --FLAG VALUE ..."
    parser = argparse.ArgumentParser(usage=usage, description=description, epilog=OTHERS, formatter_class=formatter, add_help=False)
    our_flags(parser)
    return parser.format_help()
