#!/usr/bin/env bash
# The test suite: bash scripts/test.sh [pytest arguments]
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    cat <<'HELP'
usage: bash scripts/test.sh [pytest arguments]

Runs ruff (lint and format), the import rules of pyproject.toml and the whole test suite on the CPU (tiny random models, no network, under 8 minutes on 2 cores).
Without an active environment it makes .venv first. Examples:

  bash scripts/test.sh                      everything
  bash scripts/test.sh -k video -x          the video tests, stop at the first failure
HELP
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
aha_setup
cd "$AHA_ROOT"
# two workers of one thread each: the models are tiny, and threads would only fight over their matrices
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false WANDB_MODE="${WANDB_MODE:-disabled}" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
lint-imports --no-cache
exec "$PYTHON" -m pytest -q -n 2 --dist loadfile "$@"
