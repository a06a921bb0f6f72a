#!/usr/bin/env bash
# Fine-tune on Mr.HiSum from MMDuet with DeepSpeed, on all GPUs of the node:   bash scripts/train_on_hisum.sh
NAME=train_on_hisum
ABOUT="Fine-tunes LLaVA-OneVision-Qwen2-7B with Aha's heads on the training split of Mr.HiSum, from the MMDuet adapter in outputs/mmduet, with the
hyper-parameters of scripts/train_on_tvsum.sh. Videos are datasets/hisum/videos/<youtube_id>.mp4 (instructions/data.md)."
DEFAULTS=(
    --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov --lora_pretrained outputs/mmduet --dataset_config configs/datasets/hisum.json
    --output_dir outputs/aha_hisum --deepspeed configs/deepspeed/zero1.json --bf16 True --report_to wandb --dataloader_num_workers 4
)
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
