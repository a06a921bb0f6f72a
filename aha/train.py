"""Fine-tune the highlight model on a mixture of data sets.

    torchrun --standalone --nproc_per_node 8 -m aha.train \\
        --llm_pretrained lmms-lab/llava-onevision-qwen2-7b-ov --lora_pretrained outputs/mmduet \\
        --dataset_config configs/datasets/tvsum.json --frame_fps 1 --max_num_frames 400 \\
        --deepspeed configs/deepspeed/zero2.json --bf16 True --output_dir outputs/aha_tvsum

(scripts/train_on_tvsum.sh is this command with everything checked first.) The run folder gets the adapter in the published PEFT
layout, its tokenizer, settings.json, versions.json, trained_on_videos.json, train.log and loss_history.jsonl (JSON Lines), and checkpoints.
The same command again goes on from the last complete checkpoint, with the same losses as if it had never stopped.
"""

from __future__ import annotations

from aha.core.environment import quiet, run_rank
from aha.scoring.model_choice import spelled_out
from aha.training.help import help_text


def main(argv: list[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(help_text(__doc__), end="")
        return
    argv = ["--help" if word == "--help_all" else word for word in argv]  # transformers' parser says all it knows
    quiet()
    from aha.training.run import train

    train(spelled_out(argv, download=True))


if __name__ == "__main__":
    run_rank(main)
