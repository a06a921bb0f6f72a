"""What loading makes of damaged checkpoints and tokenizers: copy a small base, adapter or whole model, damage one file, load it.

    python test/mutate_checkpoints.py --runs 300 --seed 1

Prints a line for each run (folder, file, kind of damage, what came of it, seconds) and a table with the largest memory. Exit code 1 if any
run ended in something other than a model or a UserError, or took longer than --limit seconds (a hang ends the process).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paths import shared_fixture

from aha.core.memory import peak_mib
from aha.errors import UserError
from aha.models import AhaModel
from aha.streaming.session import tokenizer_of

BASE, ADAPTER = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    7,
    10**9,
    1e308,
    0.5,
    "",
    "x",
    "(",
    [],
    {},
    [1],
    ["x"],
    {"x": 1},
    "../outside.safetensors",
    "<|im_end|>",
]


def mutate_json(text: bytes, rng: np.random.Generator) -> bytes:
    """One value of a JSON file becomes another: removed, renamed, or of an odd type or size."""
    root = json.loads(text)
    spot, steps = root, int(rng.integers(1, 5))
    for _ in range(steps):
        inner = [key for key in places(spot) if places(spot[key])]
        if not inner or rng.random() < 0.4:
            break
        spot = spot[inner[rng.integers(len(inner))]]
    keys = places(spot)
    key, kind = keys[rng.integers(len(keys))], rng.random()
    if kind < 0.15:
        del spot[key]
    elif kind < 0.25 and isinstance(spot, dict):
        spot[key[:-1] + "~"] = spot.pop(key)
    elif kind < 0.4 and type(spot[key]) in (int, float):
        spot[key] = spot[key] * int(rng.choice([-1, 2, 1000, 10**9]))
    else:
        spot[key] = ODD[rng.integers(len(ODD))]
    return json.dumps(root).encode()


def places(value: Any) -> list[Any]:
    """Keys or indices, a few hundred at most: a vocabulary has 150,000."""
    return list(value)[:300] if isinstance(value, dict) else list(range(min(len(value), 300))) if isinstance(value, list) else []


def flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for at in rng.integers(0, len(out), int(rng.integers(1, 9))):
        out[at] = rng.integers(256)
    return bytes(out)


def flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    """The first bytes: the header of a safetensors file, with names, types, shapes and offsets."""
    return flip_bytes(data[:2000], rng) + data[2000:]


def cut_off(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def mutate_header(data: bytes, rng: np.random.Generator) -> bytes:
    """One value of a safetensors header, in a header that is valid otherwise."""
    size = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def not_finite(data: bytes, rng: np.random.Generator) -> bytes:
    at = 4 * int(rng.integers(len(data) // 8, len(data) // 4 - 1)) + int.from_bytes(data[:8], "little") % 4
    return data[:at] + np.float32(rng.choice([np.nan, np.inf])).tobytes() + data[at + 4 :]


JSON: list[Callable[[bytes, np.random.Generator], bytes]] = [mutate_json, mutate_json, mutate_json, mutate_json, flip_bytes, cut_off]
TENSORS: list[Callable[[bytes, np.random.Generator], bytes]] = [mutate_header, mutate_header, flip_header, flip_bytes, cut_off, not_finite]


def make_sources(folder: Path) -> dict[str, Path]:
    """Name -> folder to damage copies of: base, adapter, and a whole model in shards with an index."""
    whole = folder / "whole"
    model = AhaModel.from_base(BASE, ADAPTER)
    model.save_pretrained(whole, tokenizer=tokenizer_of(model), max_shard_bytes=400_000)
    return {"base": BASE, "adapter": ADAPTER, "whole": whole}


def load(name: str, folder: Path) -> None:
    """Load the model and its tokenizer, score one frame and say one word: what was loaded must be usable."""
    if name == "whole":
        model = AhaModel.from_pretrained(folder)
    else:
        model = AhaModel.from_base(folder if name == "base" else BASE, ADAPTER if name == "base" else folder)
    side = model.config.frame.side
    session = model.stream(query="a word")
    session.push(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    session.respond(max_new_tokens=1)


def run_once(sources: dict[str, Path], work: Path, rng: np.random.Generator) -> tuple[str, str]:
    """(what was damaged and how, what came of it): one run. The outcome is "model", "sentence" or a traceback."""
    name = str(rng.choice(list(sources)))
    folder = work / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources[name], folder)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors") and path.stat().st_size]
    path = files[rng.integers(len(files))]
    path.chmod(0o644)
    kinds = JSON if path.suffix == ".json" else TENSORS
    damage = kinds[rng.integers(len(kinds))]
    path.write_bytes(damage(path.read_bytes(), rng))
    what = f"{name:8}{path.name:34}{damage.__name__:14}"
    try:
        load(name, folder)
    except UserError as error:
        return what, "sentence" if "\n" not in str(error).strip() else "several lines: " + str(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 (that is what is looked for)
        return what, traceback.format_exc()
    return what, "model"


def run_all(runs: int, seed: int, limit: float, say: Callable[[str], None]) -> Counter[str]:
    """Outcomes of `runs` runs; a hang beyond `limit` seconds ends the process with a traceback."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = make_sources(Path(work))
        for number in range(runs):
            faulthandler.dump_traceback_later(limit, exit=True)
            began = time.perf_counter()
            what, outcome = run_once(sources, Path(work), np.random.default_rng([seed, number]))
            faulthandler.cancel_dump_traceback_later()
            short = outcome if outcome in ("model", "sentence") else "BAD"
            outcomes[short] += 1
            say(f"{number:4} {what} {short} {time.perf_counter() - began:.1f} s" + (f"\n{outcome}" if short == "BAD" else ""))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120, help="seconds for one run; longer is a hang")
    args = parser.parse_args()
    outcomes = run_all(args.runs, args.seed, args.limit, lambda line: print(line, flush=True))
    peak = round(peak_mib())
    print(f"{args.runs} runs, seed {args.seed}: {dict(outcomes)}; memory peak {peak} MiB")
    return 1 if outcomes["BAD"] else 0


if __name__ == "__main__":
    sys.exit(main())
