# What the training scripts of this folder share. Each sets NAME, ABOUT and DEFAULTS (flags of python -m aha.train) and sources this file.
# Flags on the command line come after the defaults and win.

set -euo pipefail

usage() {
    cat <<HELP
usage: bash scripts/$NAME.sh [flags of python -m aha.train]

$ABOUT

Runs torchrun over the GPUs of this node with DeepSpeed. Everything that is missing is listed first, before a model is loaded (exit code 2).
What suits the GPUs (compiled layers, which layers are recomputed, the optimizer's state) is chosen and printed; every choice has a flag.
The same command again goes on from the last complete checkpoint. python -m aha.train --help lists all flags.

Variables:
  NUM_GPUS      GPUs of this node to use (default: all); with --use_cpu True: processes on the CPU (default 1, for dry runs)
  NNODES        number of nodes (default 1); then on every node:
  NODE_RANK     0 .. NNODES-1
  MASTER_ADDR   address of node 0, reachable from the others
  MASTER_PORT   a free port there (default 29500)
  WANDB_MODE    online | offline | disabled; keys come from .env (see .env.example)
Defaults:
  ${DEFAULTS[*]}
Examples:
  bash scripts/$NAME.sh --output_dir outputs/try --max_steps 20
  bash scripts/$NAME.sh --deepspeed configs/deepspeed/zero3.json
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/$NAME.sh
HELP
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage && exit 0 ;; esac
done

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
aha_setup
cd "$AHA_ROOT"

for argument in "$@"; do # a model by name: the defaults name none (they begin with the base, some with its adapter after it)
    case "$argument" in --model | --model=*)
        DEFAULTS=("${DEFAULTS[@]:2}")
        [ "${DEFAULTS[0]}" != --lora_pretrained ] || DEFAULTS=("${DEFAULTS[@]:2}")
        break
        ;;
    esac
done

case "${NUM_GPUS:-1}" in *[!0-9]*) aha_fail "NUM_GPUS=$NUM_GPUS is no number; give the number of GPUs of this node to use." ;; esac
NNODES="${NNODES:-1}"
if [ "$NNODES" != 1 ] && { [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; }; then
    aha_fail "NNODES=$NNODES also needs NODE_RANK (0 .. NNODES-1) and MASTER_ADDR (address of node 0); see instructions/distributed_instructions.md."
fi

if [ "$NNODES" = 1 ]; then
    RENDEZVOUS=(--standalone)
else
    RENDEZVOUS=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# samples differ in length: memory that grows in place leaves no holes of a size that nobody wants
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
exec "$PYTHON" scripts/launch.py "${RENDEZVOUS[@]}" -- "${DEFAULTS[@]}" "$@"
