"""A model that is not ours, for test_lmms_eval.py: LLaVA-OneVision in transformers' layout with tiny random weights and a small vocabulary.

    python test/lmms_tiny_model.py FOLDER "1 2 3 4 5"      # its answers are made of these words; needs torchvision, as lmms-eval's models do
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

SPECIAL = ("<unk>", "<pad>", "<end>", "<image>", "<video>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else '<video>' if part['type'] == 'video' else part['text'] }} "
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def main(folder: str, words: str) -> None:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<image>", "<video>"]
    )
    size = {"height": 28, "width": 28}
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False
        ),
        text_config=Qwen2Config(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        ),
        image_token_index=vocabulary["<image>"], video_token_index=vocabulary["<video>"], image_grid_pinpoints=[[28, 28]],
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():  # it says words, and nothing else: of several prompts it says several things
        model.lm_head.weight[: len(SPECIAL)] = 0
        model.lm_head.weight *= 20
    model.save_pretrained(folder)
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28]]), fast, LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4, vision_feature_select_strategy="full", chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
