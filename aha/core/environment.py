"""What surrounds a run: .env, Weights & Biases settings, versions, and how one rank of several ends."""

from __future__ import annotations

import configparser
import contextlib
import ctypes
import fcntl
import importlib.metadata
import io
import json
import logging
import netrc
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from aha.core.files import read_json, read_text
from aha.errors import UserError, no_fault

ROOT = Path(__file__).resolve().parents[2]  # the checkout; of an installed package the folder that it was installed into, with no configs/
WANDB_CONFIG = "configs/wandb/wandb.config"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "safetensors", "numpy", "aha-video")


def load_env() -> None:
    """Take .env of the working folder (or of the project) into the environment, the first thing that every command does (run_command,
    run_rank). What is set already wins; empty values are skipped. Raises UserError for a file that cannot be read."""
    path = next((p for p in (Path(".env"), ROOT / ".env") if p.is_file()), None)
    if path is None:
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(stream=io.StringIO(read_text(path, "settings file"))).items():
        if value:
            os.environ.setdefault(name, value)


def prepare_wandb(output_dir: str, main: bool) -> dict[str, Any]:
    """Environment variables for transformers' wandb callback: project, entity, tags (configs/wandb/wandb.config of the working
    folder or of the project), mode, folder, run id.

    Without a key and without WANDB_MODE the run is kept offline in the run folder. A resumed run continues its wandb run.
    Returns the file's `config`: entries for the run's configuration.
    """
    path = next((p for p in (Path(WANDB_CONFIG), ROOT / WANDB_CONFIG) if p.is_file()), None)
    config = read_json(path, "wandb settings") if path else {}
    for key in ("project", "entity", "run_group", "tags", "notes"):
        value = config.get(key)
        if value:
            os.environ.setdefault(f"WANDB_{key.upper()}", ",".join(value) if isinstance(value, list) else str(value))
    host = wandb_host()
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not in_netrc(host):
        os.environ["WANDB_MODE"] = "offline"
        if main:
            print(f"wandb: no key for {host} (WANDB_API_KEY, see .env.example), the run is kept offline; "
                  f"wandb sync {output_dir}/wandb/offline-run-*")  # fmt: skip
    os.environ.setdefault("WANDB_DIR", output_dir)
    os.environ.setdefault("WANDB_SILENT", "true")
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    if main and "WANDB_RUN_ID" not in os.environ:
        remembered = Path(output_dir) / "wandb_run_id"
        if not remembered.is_file():
            remembered.write_text(f"aha-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", encoding="utf-8")
        os.environ["WANDB_RUN_ID"] = remembered.read_text(encoding="utf-8").strip()
        os.environ.setdefault("WANDB_RESUME", "allow")
    return config.get("config") or {}


def wandb_host() -> str:
    """The server that wandb talks to: WANDB_BASE_URL, else what `wandb login --host` wrote into its settings file, else the public one."""
    url = os.environ.get("WANDB_BASE_URL")
    if not url:
        file = configparser.ConfigParser(interpolation=None)
        folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
        try:
            file.read(Path(folder).expanduser() / "settings", encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            return "api.wandb.ai"  # wandb itself says what is wrong with its file
        url = file.get("default", "base_url", fallback="https://api.wandb.ai")
    return urlsplit(url if "//" in url else f"https://{url}").hostname or "api.wandb.ai"


def in_netrc(host: str) -> bool:
    """Whether the file of passwords ($NETRC, ~/.netrc or ~/_netrc, as wandb looks for it) has an entry for this host."""
    named = os.environ.get("NETRC")
    path = next((p for p in map(Path.expanduser, map(Path, [named] if named else ["~/.netrc", "~/_netrc"])) if p.is_file()), None)
    try:
        return path is not None and host in netrc.netrc(path).hosts
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return False


def checkout_file(relative: str) -> Path:
    """A file of the repository that `pip install` does not bring (configs/, scripts/). Raises UserError where this is no checkout."""
    path = ROOT / relative
    if not path.is_file():
        raise UserError(f"{relative} is part of the repository and not of the installed package; run this command in a clone of it.")
    return path


def git_commit() -> str | None:
    """Commit of the project's working tree, with "+changes" where it differs from it; None outside a git checkout."""
    if not (ROOT / "pyproject.toml").is_file():  # installed: a repository around the environment is somebody else's
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def versions() -> dict[str, Any]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {"git_commit": git_commit(), "python": platform.python_version(), "packages": found}


def quiet() -> None:
    """Hide notices about other libraries' futures and set-up that say nothing about the run. Call it before they are imported."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|torch\.")
    # torchao, which transformers imports where it is installed, warns of its kernels for other GPUs and number formats
    logging.getLogger("torchao").setLevel(logging.ERROR)
    for name in ("DeepSpeed", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


# ---- processes of others ----


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, however that ends. For Popen(preexec_fn=)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_launcher() -> None:
    """Ask Linux to kill this rank when torchrun dies: ranks live in sessions of their own, and `kill -9` of torchrun would leave them
    training on into the folder of the run that is started next."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        launcher = os.getppid()
        die_with_parent()
        if os.getppid() != launcher:  # it died before the request
            os._exit(1)


def lock_folder(folder: str) -> IO[str]:
    """Hold `folder` for this process. Raises UserError where another run writes there. Keep the returned file open."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); choose another --output_dir.") from error
    return lock_file(Path(folder) / ".lock", folder, "--output_dir")


def lock_file(path: Path, what: str | os.PathLike, flag: str) -> IO[str]:
    """Hold the lock file `path` while the returned file is open. Raises UserError where another process holds it: it says who writes to
    `what`. On a file system without locks (Lustre, some NFS) the run goes on, with a word."""
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); choose another {flag} or free the disk.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"another run is writing to {what} ({holder}); wait for it, end it, or choose another {flag}.") from error
    except OSError as error:
        print(
            f"warning: the file system of {what} has no locks ({error.strerror}); see to it that no other run writes there", file=sys.stderr
        )
        return file
    with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file


@contextmanager
def held(output: str | os.PathLike, part: int = 0) -> Iterator[None]:
    """While it lasts no other command writes to `output`, a file or a folder: two would mix what they write, or take each other's parts
    away. Each part (the rank of several) has a lock of its own. Raises UserError that says who is writing."""
    place = Path(os.path.abspath(output))
    path = place.parent / f".{place.name}.lock-{part}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); choose another --output.") from error
    file = lock_file(path, output, "--output")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def run_rank(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)` as one process of a torchrun job.

    A rank that fails says why and is gone at once, without waiting for the others in a collective operation: torchrun then ends the
    job, and prints the first failure as the last thing in its log. UserError: one sentence, exit code 2; else the traceback, exit code 1.
    The error is caught here and not by sys.excepthook: torch.distributed puts a hook of its own around that one, in which it says nothing.
    """
    die_with_launcher()
    argv = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(argv) != len(sys.argv) - 1
    rank = int(os.environ.get("RANK", "0"))
    try:
        load_env()
        main(argv)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (told in full, and the process ends)
        if (lacking := no_fault(error)) is not None:
            error = UserError(lacking)
        sentence = isinstance(error, UserError) and not debug
        if sentence and rank:
            time.sleep(3)  # the same bad flag fails on all ranks: rank 0 says it, torchrun ends the others in this time
        text = f"error: {error}" if sentence else "".join(traceback.format_exception(error))
        prefix = f"[rank {rank}] " if "RANK" in os.environ and not sentence else ""
        print(prefix + text.rstrip(), file=sys.stderr)
        report_to_torchrun(text)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1)


def report_to_torchrun(text: str) -> None:
    """Write the file from which torchrun prints the first failure at the end of its log."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
