#!/usr/bin/env bash
# The tables of the Aha paper, from nothing on a GPU machine to a report:   bash scripts/reproduce.sh
# A smoke run without a GPU, on the first two videos (no result):           bash scripts/reproduce.sh --tables 1 --limit 2 --device cpu
set -euo pipefail

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    cat <<'HELP'
usage: bash scripts/reproduce.sh [--tables 1,2,3,...] [--limit N] [--model NAME] [--output DIR] [--data DIR] [--released] [--device cpu]
                                 [--judge endpoint|local] [--judge_model NAME] [--check | --estimate F [G] | --commands]

Lists everything that is missing on this machine (data, cards, weights, disk, the judge) before anything is downloaded; then fetches the weights
by name, scores on all GPUs, evaluates, and writes outputs/reproduce/REPORT.md and report.html: ours beside the published numbers, with
intervals, what is comparable, hours, versions and the exact commands. A killed run goes on with the same command. Examples:

  bash scripts/reproduce.sh --check                       what is missing
  bash scripts/reproduce.sh --estimate 318 88             hours by table at these frames a second, offline and where the model speaks
  bash scripts/reproduce.sh --tables 1,9 --limit 2        a smoke run: no result, and the report says so
  bash scripts/reproduce.sh --model mmduet-7b --output outputs/reproduce_mmduet

Variables: NUM_GPUS (default: all), HF_HOME (where weights go), OPENAI_API_KEY or OPENAI_BASE_URL (table 8), CUDA_VISIBLE_DEVICES
HELP
    exit 0
fi

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
aha_setup
cd "$AHA_ROOT"
exec "$PYTHON" -m aha.reproduce "$@"
