"""What scripts/train.sh starts: the checks of aha.preflight, then torchrun, in one process, because torch takes seconds to be imported.

    python scripts/launch.py --standalone -- FLAGS        # before `--` torchrun's rendezvous, after it the flags of python -m aha.train

NUM_GPUS says how many processes there are (default: the GPUs of this node). Exit code 2 and a list where something is missing.
"""

from __future__ import annotations

import os
import sys
import time

from aha.errors import run_command


def processes(found: int) -> int:
    """How many of this node's `found` GPUs are used; at least 1, which preflight says is missing where there is none."""
    return max(int(os.environ.get("NUM_GPUS") or found), 1)


def check(argv: list[str]) -> None:
    import torch

    from aha import preflight

    os.environ["NUM_GPUS"] = str(processes(torch.cuda.device_count() if torch.cuda.is_available() else 0))
    preflight.main(["--num_gpus", os.environ["NUM_GPUS"], *argv[argv.index("--") + 1 :]])


if __name__ == "__main__":
    os.environ["AHA_LAUNCHED"] = str(time.time())
    run_command(check)
    from torch.distributed.run import main

    cut = sys.argv.index("--")
    main([*sys.argv[1:cut], "--nproc_per_node", os.environ["NUM_GPUS"], "-m", "aha.train", *sys.argv[cut + 1 :]])
