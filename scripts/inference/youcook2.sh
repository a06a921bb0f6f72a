#!/usr/bin/env bash
# YouCook2 dense captioning from video to table: bash scripts/inference/youcook2.sh --help
NAME=youcook2
ABOUT="YouCook2 val (Zhou et al., AAAI 2018): the model narrates when the sum of informative scores passes 2; its replies are removed from the
context (MMDuet with \"rm. ass. turns\"; Aha). 1 frame in 2 seconds, at most 200. METEOR and SODA_c need Java and pycocoevalcap."
SCORE=(--frame_fps 0.5 --max_num_frames 200 --stream_end_score_sum_threshold 2 --score_heads informative_score --remove_assistant_turns)
evaluate() { "$PYTHON" -m aha.eval.youcook2 ${DATA_ROOT:+--annotations "$DATA_ROOT"} "$@"; }
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
