#!/usr/bin/env bash
# Train, score and evaluate TVSum on every split of a file and print one table:   bash scripts/kfold_tvsum.sh --splits tvsum_splits.json
# The same on a laptop, with a small model and generated videos:                  bash scripts/kfold_tvsum.sh --demo
set -euo pipefail

usage() {
    cat <<'HELP'
usage: bash scripts/kfold_tvsum.sh --splits FILE [--h5 FILE] [--output DIR] [flags of scripts/train_on_tvsum.sh]
       bash scripts/kfold_tvsum.sh --demo [--output DIR] [--epochs N]

Trains a model on every split's training videos (scripts/train_on_tvsum.sh, on all GPUs or NUM_GPUS of them), scores its test videos, and prints
the numbers of every split with their mean and deviation, as tables of video summarization have them.

  --splits FILE   splits of PGL-SUM (JSON), DSNet (YAML) or CSTA (text), or umt: UMT's fixed split
  --h5 FILE       eccv16_dataset_tvsum_google_pool5.h5, for keyshots_h5 and por
  --output DIR    folder of the run (default outputs/kfold_tvsum, with --demo outputs/kfold_demo)
  --demo          five splits of the demo's data set, 2 processes on the CPU

A killed run goes on with the same command: complete steps are not repeated, training goes on from its last checkpoint.
Variables: LLM (base, default lmms-lab/llava-onevision-qwen2-7b-ov), NUM_GPUS, DATA_ROOT (default datasets/tvsum)
HELP
}

SPLITS="" H5="" OUTPUT="" DEMO="" EXTRA=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --demo) DEMO=1 && shift ;;
        --splits | --h5 | --output)
            [ $# -ge 2 ] || { echo "error: $1 needs a value." >&2 && exit 2; }
            case "$1" in --splits) SPLITS="$2" ;; --h5) H5="$2" ;; --output) OUTPUT="$2" ;; esac
            shift 2
            ;;
        *) EXTRA+=("$1") && shift ;;
    esac
done

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
aha_setup
cd "$AHA_ROOT"

if [ -n "$DEMO" ]; then
    OUTPUT="${OUTPUT:-outputs/kfold_demo}"
    [ -f "$OUTPUT/splits.json" ] || "$PYTHON" -m aha.demo.kfold "$OUTPUT"
    SPLITS="$OUTPUT/splits.json" DATA_ROOT="$OUTPUT/tvsum"
    LLM="$("$PYTHON" -c 'from aha.demo.run import BASE; print(BASE)')"
    SCORE=("$PYTHON" -m aha.score --device cpu)
    train() { "$PYTHON" -m aha.demo.kfold "$OUTPUT" --train "$1" "${EXTRA[@]}"; }
else
    OUTPUT="${OUTPUT:-outputs/kfold_tvsum}"
    [ -n "$SPLITS" ] || aha_fail "--splits FILE is needed: the splits of PGL-SUM, DSNet or CSTA (--help says more)."
    LLM="${LLM:-lmms-lab/llava-onevision-qwen2-7b-ov}" DATA_ROOT="${DATA_ROOT:-datasets/tvsum}"
    GPUS="${NUM_GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)')}"
    SCORE=("$PYTHON" -m aha.score)
    if [ "$GPUS" -gt 1 ]; then SCORE=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" -m aha.score); fi
    train() { bash scripts/train_on_tvsum.sh --splits "$SPLITS" --split "$1" --output_dir "$OUTPUT/split-$1" "${EXTRA[@]}"; }
fi

step() { # step NAME MARKER COMMAND..: run the command unless the marker says that it is complete
    local name="$1" marker="$2"
    shift 2
    if [ -f "$marker" ]; then
        echo "$name: done before"
        return
    fi
    echo "$name"
    "$@"
    mkdir -p "$(dirname "$marker")"
    : >"$marker"
}

COUNT="$("$PYTHON" -c 'from aha.errors import run_command; from aha.eval.community import read_splits; run_command(lambda argv: print(len(read_splits(argv[0]))))' "$SPLITS")"
PREDICTIONS=()
for ((k = 0; k < COUNT; k++)); do
    RUN="$OUTPUT/split-$k"
    step "split $k: training" "$RUN/.trained" train "$k"
    MODEL=(--llm_pretrained "$LLM" --lora_pretrained "$RUN")
    case " ${EXTRA[*]} " in *" --model"[\ =]*) MODEL=(--model "$RUN") ;; esac # trained on what has a name: its base is the one that it notes
    step "split $k: scoring" "$RUN/.scored" "${SCORE[@]}" "${MODEL[@]}" --dataset tvsum \
        --data_root "$DATA_ROOT" --splits "$SPLITS" --fold "$k" --frame_fps 1 --output "$RUN/predictions.json"
    PREDICTIONS+=("$RUN/predictions.json")
done
"$PYTHON" -m aha.eval.kfold --predictions "${PREDICTIONS[@]}" --splits "$SPLITS" --annotations "$DATA_ROOT" ${H5:+--h5 "$H5"} \
    --output "$OUTPUT/kfold.json" | tee "$OUTPUT/table.txt"
echo "numbers: $OUTPUT/kfold.json"
