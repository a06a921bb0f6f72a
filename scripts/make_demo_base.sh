#!/usr/bin/env bash
# Make the demo's base checkpoint and MMDuet-layout adapter again (they ship in aha/demo/checkpoints). About half an hour on 2 CPU cores,
# no GPU, no network; seeded. Options: bash scripts/make_demo_base.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
aha_setup
cd "$AHA_ROOT"
exec "$PYTHON" -m aha.demo.pretrain "$@"
