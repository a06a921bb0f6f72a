"""A model that is not ours, for test_lmms_eval.py: Gemma 3 as transformers has it, with tiny random weights and a vocabulary of a few words.

python test/lmms_tiny_model.py FOLDER "1 2 3 4 5"      # what it answers is made of these words
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

SPECIAL = ("<pad>", "<end>", "<begin>", "<unknown>", "<picture>", "<from>", "<to>")
PATCHES = 4  # of a picture, each of which is a token
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{{ '<from>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}model "
)


def main(folder: str, words: str) -> None:
    ids = {word: i for i, word in enumerate([*SPECIAL, *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<begin>", unk_token="<unknown>",
        extra_special_tokens={"image_token": "<picture>", "boi_token": "<from>", "eoi_token": "<to>"},
    )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = Gemma3TextConfig(
        vocab_size=len(ids), num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
        pad_token_id=ids["<pad>"], eos_token_id=ids["<end>"], bos_token_id=ids["<begin>"], **sizes,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=SiglipVisionConfig(image_size=28, patch_size=14, vision_use_head=False, **sizes),
        mm_tokens_per_image=PATCHES, image_token_index=ids["<picture>"], boi_token_index=ids["<from>"], eoi_token_index=ids["<to>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # any of its words is likelier than a token that is none
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.save_pretrained(folder)
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    Gemma3Processor(pictures, fast, chat_template=TEMPLATE, image_seq_length=PATCHES).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
