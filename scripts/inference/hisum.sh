#!/usr/bin/env bash
# Mr.HiSum highlight detection from video to table: bash scripts/inference/hisum.sh --help
NAME=hisum
ABOUT="Mr.HiSum (Sul et al., NeurIPS 2023): relevance of every second of the test videos that are there, against most-replayed statistics."
SCORE=(--frame_fps 1)
evaluate() {
    local folder="${DATA_ROOT:-datasets/hisum}/annotations"
    "$PYTHON" -m aha.eval.hisum --annotations "$folder/mr_hisum.h5" --split "$folder/mr_hisum_split.json" --metadata "$folder/metadata.csv" "$@"
}
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
