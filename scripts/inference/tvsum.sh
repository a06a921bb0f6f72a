#!/usr/bin/env bash
# TVSum highlight detection from video to table: bash scripts/inference/tvsum.sh --help
NAME=tvsum
ABOUT="TVSum (Song et al., CVPR 2015): relevance of every second of 50 videos to the video title, under every published protocol."
SCORE=(--frame_fps 1)
evaluate() { "$PYTHON" -m aha.eval.tvsum ${DATA_ROOT:+--annotations "$DATA_ROOT"} "$@"; }
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
