"""`kill -9` in the middle of benchmark scoring, at random, again and again: `python test/kill_scoring.py --kills 10`.

After each kill the same command is run to its end; the file must equal the one of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paths import REPO, shared_fixture
from test_score import command, official_tvsum


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("killed.json.parts-*/*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    kills = parser.parse_args().kills
    golden = shared_fixture("reference")
    flags = ["--llm_pretrained", str(golden / "llava-onevision-qwen2-tiny-ov"), "--lora_pretrained", str(golden / "aha-adapter")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    rng = random.Random(0)
    equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = official_tvsum(folder / "tvsum", 10)

        def start(output: Path) -> subprocess.Popen:
            return subprocess.Popen(command(flags, root, output), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        if start(folder / "whole.json").wait() != 0:
            return 1
        whole = json.loads((folder / "whole.json").read_text())
        output = folder / "killed.json"
        for trial in range(kills):
            process, target = start(output), rng.randint(0, 8)
            while process.poll() is None and lines(folder) < target:
                time.sleep(0.003)
            time.sleep(rng.random() * 0.15)
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = lines(folder)
            finished = start(output).wait() == 0 and json.loads(output.read_text()) == whole
            equal += finished
            print(f"kill {trial + 1}: {done} of {len(whole)} videos were on disk; equal after the second run: {finished}", flush=True)
            output.unlink(missing_ok=True)
    print(f"{equal} of {kills} equal to the uninterrupted run")
    return int(equal < kills)


if __name__ == "__main__":
    sys.exit(main())
