#!/usr/bin/env bash
# Train MMDuet itself on its published mixture with DeepSpeed, on all GPUs of the node:   bash scripts/train_mmduet.sh
NAME=train_mmduet
ABOUT="Trains MMDuet's objective (two classifications beside language modelling) with a new LoRA adapter on MMDuetIT: dense captioning (Shot2Story,
COIN), multi-answer questions (Shot2Story-MAGQA-39k) and temporal grounding (HiREST, DiDeMo, QueryD)."
DEFAULTS=(
    --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov --objective mmduet --dataset_config configs/datasets/mmduetit.json
    --output_dir outputs/mmduet_retrained --deepspeed configs/deepspeed/zero1.json --bf16 True --report_to wandb --dataloader_num_workers 4
)
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
