# What the scripts of this folder share. Each sets NAME, ABOUT and SCORE, defines evaluate, and sources this file.
#
#     NAME       name of the benchmark for aha.score and the output folder
#     ABOUT      one paragraph for --help
#     SCORE      options for `python -m aha.score` (those of the published runs); options on the command line come after and win
#     evaluate   function: the evaluation command; it gets --predictions, --output and --report

set -euo pipefail
LLM="${LLM:-lmms-lab/llava-onevision-qwen2-7b-ov}"
LORA="${LORA-outputs/aha}"
OUT="${OUT:-outputs/inference/$NAME}"
DATA_ROOT="${DATA_ROOT:-}"

usage() {
    cat <<HELP
usage: bash scripts/inference/$NAME.sh [--limit N] [options of python -m aha.score]

$ABOUT

Scores (all GPUs of this machine; go on where an interrupted run stopped by running the same command again), evaluates, prints the table and
writes $OUT/{predictions.json, metrics.json, report/report.html}.

Variables (paths are relative to the project's folder):
  LLM=$LLM     base checkpoint, or a whole Aha model (then LORA= empty)
  LORA=$LORA   adapter (--model NAME among the options takes the place of both)
  DATA_ROOT=   folder of the data set (default: under datasets/; python -m aha.data.prepare $NAME says what belongs there)
  OUT=$OUT     output folder
  NUM_GPUS=    processes, one per GPU (default: all GPUs)
Examples:
  bash scripts/inference/$NAME.sh --limit 2
  bash scripts/inference/$NAME.sh --cache dynamic_sink --window 2048
  bash scripts/inference/$NAME.sh --corrupt blackout --corrupt_ratio 0.2 --seed 1
HELP
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage && exit 0 ;; esac
done

source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
aha_setup
cd "$AHA_ROOT"

gpus="${NUM_GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}"
launch=("$PYTHON")
[ "$gpus" -gt 1 ] && launch=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$gpus")
PREDICTIONS="$OUT/predictions.json"
mkdir -p "$OUT"

MODEL=(--llm_pretrained "$LLM" ${LORA:+--lora_pretrained "$LORA"})
for argument in "$@"; do
    case "$argument" in --model | --model=*) MODEL=() ;; esac
done
"${launch[@]}" -m aha.score "${MODEL[@]}" --dataset "$NAME" ${DATA_ROOT:+--data_root "$DATA_ROOT"} \
    "${SCORE[@]}" --output "$PREDICTIONS" "$@"
evaluate --predictions "$PREDICTIONS" --output "$OUT/metrics.json" --report "$OUT/report"
