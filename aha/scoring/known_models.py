"""Models that have a name here, and what of them is on this machine: `--model mmduet-7b` in place of two hub ids.

    known = KNOWN["mmduet-7b"]
    folders = [fetch(source) for source in known.sources()]      # said how large, downloaded where it is not there, resumable

Importing this module is light; the hub's client is imported when something is looked up.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aha.errors import UserError

DEMO = Path(__file__).parents[1] / "demo" / "checkpoints"
BASE_7B = "lmms-lab/llava-onevision-qwen2-7b-ov"


@dataclass(frozen=True)
class KnownModel:
    """base, adapter: folders or hub ids. folders: where an adapter that was fetched by hand is looked for first.

    download_GB: of base and adapter, about (the hub says it exactly before a download). GPU memory in GiB is the measured peak of scoring
    with a bounded cache in bfloat16 (benchmarks/LOG.md), CPU memory in GB the weights in float32 (half of it with --dtype bfloat16).
    """

    base: str
    adapter: str
    about: str
    licence: str
    download_GB: float
    gpu_GiB: float
    cpu_GB: float
    folders: tuple[str, ...] = ()
    elsewhere: str = ""  # where else the adapter is to be had

    def sources(self) -> list[str]:
        """Base and adapter: of the adapter the first folder that holds one, else the hub id."""
        here = next((folder for folder in self.folders if (Path(folder) / "adapter_config.json").is_file()), self.adapter)
        return [self.base, here]


KNOWN = {
    "demo": KnownModel(
        str(DEMO / "llava-onevision-qwen2-demo-ov"), str(DEMO / "aha-demo"), "trying things out: knows only simple coloured shapes",
        "Apache-2.0", 0, 0.5, 0.5,
    ),
    "mmduet-7b": KnownModel(
        BASE_7B, "wangyueqian/MMDuet", "any video, any words: MMDuet, which Aha starts from (no uncertainty)",
        "Apache-2.0 + MIT", 17, 18, 33, ("outputs/mmduet",),
    ),
    "aha-7b": KnownModel(
        BASE_7B, "aiden200/aha", "any video, any words: the published Aha adapter",
        "Apache-2.0", 17, 18, 33, ("outputs/aha_weights", "aha_weights"),
        "its release gives the archive aha_weights.zip on the drive that its README links: unpack it into the folder aha_weights",
    ),
}  # fmt: skip


def hint(source: str) -> str:
    """Where else a known adapter can be downloaded, as the end of an error's sentence; "" for others."""
    return next((f"; {known.elsewhere}" for known in KNOWN.values() if source == known.adapter and known.elsewhere), "")


def is_hub_id(source: str) -> bool:
    return not Path(source).expanduser().exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def cached(source: str) -> bool:
    """Whether nothing has to be downloaded: a folder, or a hub id that is whole in the cache."""
    if not is_hub_id(source):
        return Path(source).expanduser().is_dir()
    from llava_next.hub import in_cache

    return in_cache(source)


def download_bytes(source: str) -> int:
    """Bytes that a download would fetch, by the hub's own list of files. Raises UserError as `fetch` does."""
    with _hub_errors(source):
        from huggingface_hub import snapshot_download
        from llava_next.hub import WEIGHT_FILES, NoBar

        files: Any = snapshot_download(source, allow_patterns=WEIGHT_FILES, dry_run=True, tqdm_class=NoBar)
        return sum(file.file_size or 0 for file in files if file.will_download)


def fetch(source: str) -> Path:
    """The folder of a source: one here, one in the hub cache, or downloaded now with its size said first and a progress bar.

    The client goes on by itself where a connection breaks; after that the same call fetches the files that are not complete. Raises
    UserError: no such thing, gated, no network, cut off, a full disk.
    """
    from llava_next import resolve_folder
    from llava_next.hub import snapshot

    if not is_hub_id(source) or cached(source):
        return resolve_folder(source)
    from huggingface_hub import constants

    size = download_bytes(source)
    if size:
        where = Path(constants.HF_HUB_CACHE)
        print(f"downloading {source}: {shown_bytes(size)} into {where} (once)", file=sys.stderr)
        there = next(folder for folder in (where, *where.parents) if folder.is_dir())
        if (free := shutil.disk_usage(there).free) < size:
            raise UserError(f"{source} needs {shown_bytes(size)} and {where} has {shown_bytes(free)} left; set HF_HOME to a larger disk.")
    with _hub_errors(source):
        snapshot(source)
    return resolve_folder(source)


def verify(source: str) -> int:
    """Compare the downloaded files of a hub id with the hub's checksums; how many were compared. Raises UserError for one that differs."""
    from huggingface_hub import HfApi

    with _hub_errors(source):
        found = HfApi().verify_repo_checksums(source)
    if found.mismatches:
        raise UserError(
            f"{source}: {found.mismatches[0].get('path')} is not what the hub has (its checksum differs); delete the folder "
            f"{found.verified_path} and get it again."
        )
    return found.checked_count


def shown_bytes(count: float) -> str:
    """Bytes as people read them; 10^9 bytes are a GB, as download pages say it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn what the hub's client raises about `source` into one sentence."""
    from huggingface_hub.errors import DryRunError, GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DryRunError) and error.__cause__ else error  # a dry run hides why it cannot be
        if isinstance(cause, GatedRepoError):
            said = f"{source} is gated: accept its terms on its page on the hub, then log in (hf auth login, or HF_TOKEN)"
        elif isinstance(cause, RepositoryNotFoundError | HFValidationError):
            said = f"{source} is neither a folder here nor a model on the hub; check the spelling (private ones need HF_TOKEN)"
        elif isinstance(error, DryRunError | LocalEntryNotFoundError):
            said = f"{source} is not whole in the hub cache and the hub cannot be reached; get it where there is network"
        else:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            said = f"the download of {source} stopped ({why}); the same command goes on with the files that lack"
        raise UserError(f"{said}{hint(source)}.") from error
