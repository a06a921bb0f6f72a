#!/usr/bin/env bash
# Fine-tune on TVSum from MMDuet with DeepSpeed, on all GPUs of the node:   bash scripts/train_on_tvsum.sh
# The same trainer on a laptop, with a small model and generated videos:     bash scripts/train_on_tvsum.sh --demo
NAME=train_on_tvsum
ABOUT="Fine-tunes LLaVA-OneVision-Qwen2-7B with Aha's heads on TVSum, from the MMDuet adapter in outputs/mmduet: LoRA (r 16, alpha 32), ZeRO-1,
bf16, learning rate 2e-5 with cosine and 5% warm-up, batch 1 x 16 accumulation steps per GPU, 1 epoch over the
training videos of fold 0 (--fold N for another; the held-out fifth is never trained on;
--splits FILE --split K for a published split, --splits umt for UMT's fixed one).

  --demo        run the same trainer and DeepSpeed engine on 2 CPU cores with the small model of aha/demo on videos that it generates, score
                held-out videos and print the table (about 2 minutes; bash scripts/train_on_tvsum.sh --demo --help)"
DEFAULTS=(
    --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov --lora_pretrained outputs/mmduet --dataset_config configs/datasets/tvsum.json
    --output_dir outputs/aha_tvsum --deepspeed configs/deepspeed/zero1.json --bf16 True --report_to wandb --dataloader_num_workers 4
)
if [ "${1:-}" = "--demo" ]; then
    shift
    set -euo pipefail
    source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
    aha_setup
    cd "$AHA_ROOT"
    exec "$PYTHON" -m aha.demo.run "$@"
fi
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
