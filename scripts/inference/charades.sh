#!/usr/bin/env bash
# Charades-STA temporal grounding from video to table: bash scripts/inference/charades.sh --help
NAME=charades
ABOUT="Charades-STA (Gao et al., ICCV 2017): when does the described action happen. 2 frames a second, at most 400 (MMDuet, Aha)."
SCORE=(--frame_fps 2 --max_num_frames 400)
evaluate() { "$PYTHON" -m aha.eval.charades ${DATA_ROOT:+--annotations "$DATA_ROOT"} "$@"; }
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
