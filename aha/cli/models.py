"""`aha models`: the models that have a name, and what of them is here. `aha models get NAME` downloads one.

aha models
aha models get mmduet-7b        # once more: only files that are not complete; all are compared with the hub's checksums
aha highlights talk.mp4 --query "how the tyre is repaired" --model mmduet-7b --output outputs/talk
"""

from __future__ import annotations

import argparse
import textwrap

from aha.errors import UserError
from aha.results.table import WIDTH
from aha.scoring.known_models import KNOWN, KnownModel, cached, fetch, is_hub_id, verify


def table() -> str:
    lines = [f"{'name':<11}{'download':>9}{'GPU memory':>13}{'CPU memory':>13}   on this machine"]
    for name, known in KNOWN.items():
        download = f"{known.download_GB:g} GB" if known.download_GB else "none"
        lines.append(f"{name:<11}{download:>9}{f'{known.gpu_GiB:g} GiB':>13}{f'{known.cpu_GB:g} GB':>13}   {here(known)}")
        facts = " + ".join(known.sources()) if known.download_GB else "ships with the project"
        for text in (known.about, f"{facts}; licence {known.licence}"):
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    about = (
        "GPU memory: peak of scoring in bfloat16 with a bounded cache, measured with weights of that size. CPU memory: the weights in "
        "float32; --dtype bfloat16 needs half. --model also takes a folder or a hub id."
    )
    return "\n".join([*lines, "", *textwrap.wrap(about, WIDTH)])


def here(known: KnownModel) -> str:
    base, adapter = (cached(source) for source in known.sources())
    if base == adapter:
        return "yes" if base else "no"
    return "the base only" if base else "the adapter only"


def get(name: str) -> None:
    """Download a model, or complete it, and compare it with the hub. Raises UserError."""
    sources = KNOWN[name].sources() if name in KNOWN else [name]
    for source in sources:
        folder = fetch(source)
        checked = f", {verify(source)} files equal to the hub's" if is_hub_id(source) else ""
        print(f"{source}: {folder}{checked}")
    print(f"{name} is here: --model {name}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="aha models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("get",), help="get: download a model and check it; without: list them")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(KNOWN)}, or a hub id")
    args = parser.parse_args(argv)
    if args.what is None:
        print(table())
        return
    if args.name is None or (args.name not in KNOWN and not is_hub_id(args.name)):
        raise UserError(f"aha models get needs a name ({', '.join(KNOWN)}) or a hub id (org/name), not {args.name or 'none'}.")
    get(args.name)
