"""The demo's model before any training: sizes, and a start from which minutes of training are enough.

Shapes: C tower width, H decoder width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from llava_next import LlavaNextConfig, LlavaNextForCausalLM
from torch import Tensor, nn

from aha.conversation import DuetFormat
from aha.demo.scenes import COLOURS, PATTERNS, PLACES

VOCABULARY = 957  # byte pairs; three control tokens and <image> follow
WORDS = {"colour": list(COLOURS), "pattern": list(PATTERNS), "place": list(PLACES)}


def new_model(seed: int) -> LlavaNextForCausalLM:
    """SigLIP tower 64 wide with 1 stored layer, Qwen2 decoder 96 wide with 4 layers."""
    torch.manual_seed(seed)
    model = LlavaNextForCausalLM(LlavaNextConfig(
        vocab_size=976, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        bos_token_id=VOCABULARY + 1, eos_token_id=VOCABULARY + 2, image_token_index=VOCABULARY + 3,
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 384, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_channels": 3, "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
        },
    ))  # fmt: skip
    initialise_tower(model)
    initialise_decoder(model)
    return model


@torch.no_grad()
def initialise_tower(model: LlavaNextForCausalLM) -> None:
    """Start the patch embedding from smooth waves (2-D cosines of brightness and of two colour differences), the positions from sines and
    attention from "look at what is like yourself", that is near by: a short training finds these slowly by itself."""
    vision_model = model.model.vision_tower.vision_tower["vision_model"]
    embeddings = vision_model.embeddings
    width, _, patch, _ = embeddings.patch_embedding.weight.shape
    place = (torch.arange(patch) + 0.5) * math.pi / patch
    colour_axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    orders = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    waves = [(0, u, v) for u, v in orders[:40]] + [(c, u, v) for c in (1, 2) for u, v in orders[:12]]
    for row, (axis, u, v) in zip(embeddings.patch_embedding.weight, waves[:width]):
        wave = torch.outer(torch.cos(v * place), torch.cos(u * place))
        kernel = colour_axes[axis][:, None, None] * wave
        row.copy_(kernel / kernel.norm() * 0.5)
    embeddings.patch_embedding.bias.zero_()
    side = model.config.patches_per_side
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rate = torch.exp(-torch.arange(width // 4) / (width // 4) * math.log(60.0))
    angles = [axis.flatten()[:, None] * rate for axis in (x, y)]
    table = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)
    embeddings.position_embedding.weight.copy_(0.3 * table)
    for layer in vision_model.encoder.layers:
        same = torch.randn(width, width) * 1.5 / width**0.5
        layer.self_attn.q_proj.weight.copy_(same)
        layer.self_attn.k_proj.weight.copy_(same)


@torch.no_grad()
def initialise_decoder(model: LlavaNextForCausalLM) -> None:
    """Linear layers with unit gain, and queries equal to keys, so that a token attends to tokens like itself from the start
    (Trockman and Kolter 2023, "Mimetic initialization of self-attention layers"): a picture's "red" finds the query's "red"."""
    layers = model.model.layers
    for name, parameter in model.model.layers.named_parameters():
        if parameter.ndim == 2:
            gain = 1 / math.sqrt(2 * len(layers)) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))
    for layer in layers:
        attention = layer.self_attn
        groups = attention.k_proj.weight.view(model.config.num_key_value_heads, -1, model.config.hidden_size)
        attention.q_proj.weight.copy_(groups.repeat_interleave(model.config.num_attention_heads // len(groups), 0).flatten(0, 1))
    embeddings = model.model.embed_tokens.weight
    nn.init.normal_(embeddings, std=0.5)
    embeddings += 0.3 * torch.randn(embeddings.shape[1])  # a direction that all text has and pictures do not
    nn.init.normal_(model.lm_head.weight, std=0.05)


def new_word_vectors(model: LlavaNextForCausalLM) -> dict[str, Tensor]:
    """Family -> a vector of unit mean square for each word [words, H], all orthogonal."""
    hidden = model.config.hidden_size
    total = sum(map(len, WORDS.values()))
    directions = torch.linalg.qr(torch.randn(hidden, total))[0].T * math.sqrt(hidden)
    return dict(zip(WORDS, directions.split([len(words) for words in WORDS.values()])))


@torch.no_grad()
def embed_words(model: LlavaNextForCausalLM, vectors: dict[str, Tensor], duet: DuetFormat) -> None:
    """Give every spelling of a word (capital or not, with or without a space before it) that is one token the word's vector as embedding,
    at half the size and beside what all text has in common."""
    embeddings = model.model.embed_tokens.weight
    common = embeddings.mean(0)
    for family, words in WORDS.items():
        for word, vector in zip(words, F.rms_norm(vectors[family], vectors[family].shape[-1:])):
            for spelling in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
                ids = duet.encode(spelling)
                if len(ids) == 1:
                    embeddings[ids[0]] = 0.5 * vector + common
