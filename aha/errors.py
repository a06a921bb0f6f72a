"""How a command of this project fails: one plain sentence, exit code 2, no traceback unless --debug is given."""

from __future__ import annotations

import errno
import io
import sys
import traceback
from collections.abc import Callable

from llava_next.errors import UserError  # the base's, of which CheckpointError is one: what it cannot load ends every command alike

__all__ = ["UserError", "run_command"]


def no_room(error: BaseException) -> str | None:
    """A sentence for the kinds of OSError that no code can prevent: a disk that is full or cannot be written, a path that may not or cannot
    be used. None for all others."""
    if not isinstance(error, OSError):
        return None
    if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename} cannot be used ({error.strerror}); check the path and who may read and write it."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return f"{error.filename or 'a file'} cannot be written ({error.strerror}); free the disk, or choose another output."


def no_memory(error: BaseException) -> str | None:
    """A sentence for work that a GPU or this machine has no memory for, wherever it happens; None for all else. (Training itself recomputes
    more first.)"""
    said = str(error).split(". ")[0].splitlines()[:1]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        place = "the GPU's memory"
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        place = "this machine's memory"
    else:
        return None
    return (
        f"{place} is not enough{''.join(f' ({line})' for line in said)}; take smaller weights (--weights 8bit or 4bit), a bounded cache "
        "(--cache dynamic_sink), fewer frames (--max_num_frames), or end what else runs there."
    )


def no_fault(error: BaseException) -> str | None:
    """A sentence for what the machine lacks and the program cannot help: room on a disk, or memory. None for all else."""
    return no_room(error) or no_memory(error)


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)` as a command line program.

    `.env` is read before anything else, so that what `main` imports finds HF_HOME and the like there.
    `--debug` (anywhere on the line) is taken out of argv; with it a UserError keeps its traceback.
    Exit codes: 0 success, 2 UserError (argparse uses 2 as well), 130 Ctrl-C; other exceptions are bugs and keep their traceback (1).
    """
    from aha.core.environment import load_env, quiet

    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # a file name that is not UTF-8 can be printed
    argv = sys.argv[1:]
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        load_env()
        quiet()
        main(argv)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our standard output went away (`... | head`)
        sys.stderr.close()
        sys.exit(141)
    except (OSError, RuntimeError, MemoryError) as error:
        if debug or (sentence := no_fault(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
