"""Ablations in one command (aha.scoring.ablate): caches, corruptions, prompts and heads.

python -m aha.eval.ablate --dataset tvsum --study cache,corruption,prompt,heads --llm_pretrained BASE --output outputs/ablation
"""

from aha.errors import run_command
from aha.scoring.ablate import main

if __name__ == "__main__":
    run_command(main)
