#!/usr/bin/env bash
# QVHighlights highlight detection from video to table: bash scripts/inference/qvh.sh --help
NAME=qvh
ABOUT="QVHighlights val (Lei et al., NeurIPS 2021): highlight detection, and moment retrieval from scores. 1 frame a second, at most 400 (MMDuet)."
SCORE=(--frame_fps 1 --max_num_frames 400)
evaluate() { "$PYTHON" -m aha.eval.qvhighlights --windows_from_scores 0.5 ${DATA_ROOT:+--annotations "$DATA_ROOT"} "$@"; }
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
