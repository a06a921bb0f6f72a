"""Make the demo's base model: a small LLaVA-OneVision-layout checkpoint pretrained on generated pictures, and an MMDuet-layout adapter.

    bash scripts/make_demo_base.sh          (= python -m aha.demo.pretrain --output aha/demo/checkpoints)

Three stages, as for the real models, all seeded. Nothing of the demo's data set is seen: other scenes and wordings, no importance scores.
1. vision: tower and projector learn to put each of a picture's 49 cells near the vectors of the words for what is there
   (picture-word alignment, what SigLIP brings along);
2. language: the decoder learns, over streams of a few frames, to point at what a query asks for, frame by frame (with read-outs that are
   thrown away afterwards), and to describe the last frame in words (lm_head);
3. MMDuet adapter: LoRA on longer streams; the informative head learns to tell a new scene. The relevance head stays untrained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aha.errors import run_command


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.demo.pretrain", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", default="aha/demo/checkpoints", help="folder for the two checkpoints (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default %(default)s)")
    parser.add_argument("--vision_steps", type=int, default=1000, help="batches of 24 pictures (default %(default)s)")
    parser.add_argument("--bank_scenes", type=int, default=2400, help="scenes for stages 2 and 3, two pictures each (default %(default)s)")
    parser.add_argument("--language_steps", type=int, default=1800, help="batches of short streams (default %(default)s)")
    parser.add_argument("--adapter_steps", type=int, default=150, help="batches of long streams (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    args = parser.parse_args(argv)
    from aha.demo.stages import make_checkpoints  # imports torch: --help needs none

    make_checkpoints(
        Path(args.output), seed=args.seed, device=args.device, vision_steps=args.vision_steps, bank_scenes=args.bank_scenes,
        language_steps=args.language_steps, adapter_steps=args.adapter_steps,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
