"""The base video-language model: SigLIP tower -> 2-layer GELU projector -> bilinear pooling -> Qwen2 decoder.

Parameter names are those of the published LLaVA-NeXT checkpoints (`model.layers.*`, `model.mm_projector.{0,2}.*`,
`model.vision_tower.vision_tower.vision_model.*`, `model.image_newline`, `lm_head.weight`), so that published weights and published
LoRA adapters load without renaming.

Shapes: N frames, P patches (729), K tokens of a frame (49), C tower width, H decoder width, B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Model, SiglipVisionModel
from transformers.cache_utils import Cache
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer
from transformers.utils import is_flash_attn_2_available

from llava_next.config import LlavaNextConfig
from llava_next.errors import UserError
from llava_next.fused_tower import fuse_layers, fused_mlp, fusible, set_forward

TOWER_BATCH = 64  # frames that go through the vision tower at a time


def pick_attention(device: str | torch.device = "cpu", wanted: str | None = None) -> str:
    """`wanted` if given; else flash_attention_2 where it is installed and the device is a GPU, else sdpa.

    Raises UserError where flash_attention_2 is asked for but cannot run.
    """
    on_gpu = torch.device(device).type == "cuda"
    if wanted is None:
        return "flash_attention_2" if on_gpu and is_flash_attn_2_available() else "sdpa"
    if wanted == "flash_attention_2" and not (on_gpu and is_flash_attn_2_available()):
        raise UserError("attention flash_attention_2 needs a GPU and the package flash-attn; use sdpa instead.")
    return wanted


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # the result is kept, and may be used in training later
def _pooling(side: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bilinear pooling of a side x side grid to tokens x tokens as a matrix: float32 weights [K, U], and the patches used [U]."""
    identity = torch.eye(side * side).view(1, side * side, side, side)
    weight_KP = F.interpolate(identity, size=(tokens, tokens), mode="bilinear").flatten(2)[0].T
    used_U = (weight_KP != 0).any(0).nonzero().squeeze(1)
    return weight_KP[:, used_U].contiguous().to(device), used_U.to(device)


def run_layer(layer: nn.Module, *args, **kwargs):
    """The layer's own forward pass as a plain function: compiled once, it serves all layers of the class."""
    return type(layer).forward(layer, *args, **kwargs)


def siglip_layer(
    layer: SiglipEncoderLayer, weight: Tensor, bias: Tensor, fused: bool, hidden_NPC: Tensor, attention_mask: None = None, **_: object
) -> Tensor:
    """A layer of the tower with its three projections in one (`weight`, `bias`: one below the other). fused: GELU in the MLP's product."""
    attention = layer.self_attn
    frames, patches, _width = hidden_NPC.shape
    together = F.linear(layer.layer_norm1(hidden_NPC), weight, bias).view(frames, patches, 3, attention.num_heads, attention.head_dim)
    query, key, value = together.permute(2, 0, 3, 1, 4)
    seen_NHPD = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    hidden_NPC = hidden_NPC + attention.out_proj(seen_NHPD.transpose(1, 2).reshape(hidden_NPC.shape))
    normed_NPC = layer.layer_norm2(hidden_NPC)
    return hidden_NPC + (fused_mlp(layer.mlp, normed_NPC) if fused else layer.mlp(normed_NPC))


class SiglipTower(nn.Module):
    """transformers' SigLIP vision model under the published name; features are the raw output of its last layer.

    The published layout stores every layer but the last one of google/siglip-so400m-patch14-384 (`mm_vision_select_layer` -2) and
    the post-layernorm, which is not applied.
    """

    def __init__(self, config: LlavaNextConfig) -> None:
        super().__init__()
        vision = config.vision
        vision.vision_use_head = False
        vision._attn_implementation = "eager" if config._attn_implementation == "eager" else "sdpa"
        if config._attn_implementation == "flash_attention_2":
            vision._attn_implementation = "flash_attention_2"
        self.vision_tower = nn.ModuleDict({"vision_model": SiglipVisionModel(vision)})

    @property
    def siglip(self) -> SiglipVisionModel:
        model = self.vision_tower["vision_model"]
        assert isinstance(model, SiglipVisionModel)
        return model

    def forward(self, pixel_values_NCHW: Tensor) -> Tensor:
        # the convolution that embeds patches gives channels first, a layout that would slow every addition of the tower
        hidden_NPC = self.siglip.embeddings(pixel_values_NCHW).contiguous()
        return self.siglip.encoder(inputs_embeds=hidden_NPC).last_hidden_state

    def compile_layers(self) -> None:
        """For inference with few frames: the projections of queries, keys and values become one matrix product, GELU is done in the product
        before it, and torch.compile fuses what else lies between the products, once for all layers and batch sizes. Keeps merged copies of
        these weights. Idempotent."""
        function = torch.compile(siglip_layer, dynamic=True)
        for layer in self.siglip.encoder.layers:
            assert isinstance(layer, SiglipEncoderLayer)
            projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            weight = torch.cat([p.weight.detach() for p in projections])
            bias = torch.cat([p.bias.detach() for p in projections])
            set_forward(layer, functools.partial(function, layer, weight, bias, fusible(layer.mlp)))


class LlavaNextModel(Qwen2Model):
    """transformers' Qwen2 decoder with the vision tower and the projector beside it, named as in the published checkpoints."""

    config_class = LlavaNextConfig

    def __init__(self, config: LlavaNextConfig) -> None:
        super().__init__(config)
        self.vision_tower = SiglipTower(config)
        width, hidden = config.vision.hidden_size, config.hidden_size
        self.mm_projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        # Part of the layout (single images in tiles); a video frame has no newline token. Kept so that a round trip loses nothing.
        self.image_newline = nn.Parameter(torch.zeros(hidden), requires_grad=False)


class LlavaNextForCausalLM(Qwen2PreTrainedModel):
    """The whole base model. `visual_embed` and `joint_embed` make decoder inputs, `decode` runs the decoder, `lm_head` gives logits."""

    config_class = LlavaNextConfig
    config: LlavaNextConfig
    projector = "mm_projector"  # the module between tower and decoder
    # MMDuet's LoRA (adapter_config.json of the published adapter): every linear layer of the decoder
    lora_targets = r"model\.layers.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"

    def __init__(self, config: LlavaNextConfig) -> None:
        super().__init__(config)
        self.model = LlavaNextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    # by name: transformers would find `embed_tokens` below, which is a method, in place of the table
    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    # ---- vision ----

    def pixel_values(self, frames_NCHW: Tensor) -> Tensor:
        """uint8 RGB [N, 3, 384, 384] -> normalised pixels in the tower's dtype and device: (x / 255 - 0.5) / 0.5.

        The bytes are moved first and converted there: 4 times less to copy, and the arithmetic runs on the GPU.
        """
        weight = self.model.mm_projector[0].weight
        if frames_NCHW.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 [N, 3, H, W] with values 0..255, got {frames_NCHW.dtype}")
        frames_NCHW = frames_NCHW.to(weight.device, non_blocking=True)
        return frames_NCHW.float().div_(255).sub_(0.5).div_(0.5).to(self.vision_dtype)  # in place: 1.8 MB a frame each time else

    @property
    def vision_dtype(self) -> torch.dtype:
        return self.model.vision_tower.siglip.embeddings.patch_embedding.weight.dtype

    def tower_features(self, frames_NCHW: Tensor, batch_size: int = TOWER_BATCH) -> Tensor:
        """uint8 frames -> frozen SigLIP features [N, 729, C]; no gradient, `batch_size` frames at a time."""
        with torch.no_grad():
            chunks = [self.model.vision_tower(self.pixel_values(chunk)) for chunk in frames_NCHW.split(batch_size)]
        return torch.cat(chunks) if len(chunks) != 1 else chunks[0]

    def project(self, features_NPC: Tensor) -> Tensor:
        """Tower features [N, 729, C] -> frame tokens [N, 49, H]: the projector on every patch, then bilinear pooling of the 27 x 27 grid.

        Two facts make this 9 times less work, with the same result up to rounding: pooling at stride 4 looks at 13 of the 27 rows and
        columns only, and, being a weighted mean, it may come before the projector's second linear layer. The features may be given
        as the 169 patches that are looked at (`used_patches`).
        """
        first, activation, second = self.model.mm_projector
        hidden_NUH = activation(first(self.used_patches(features_NPC).to(first.weight.dtype)))
        weight_KU, _ = _pooling(self.config.patches_per_side, self.config.tokens_per_side, features_NPC.device)
        with torch.autocast(features_NPC.device.type, enabled=False):
            pooled_NKH = (weight_KU @ hidden_NUH.float()).to(hidden_NUH.dtype)
        return second(pooled_NKH)

    def used_patches(self, features_NPC: Tensor) -> Tensor:
        """The patches that pooling looks at, [N, 169, C] of [N, 729, C]; what is reduced already is returned as it is."""
        _, used_U = _pooling(self.config.patches_per_side, self.config.tokens_per_side, features_NPC.device)
        return features_NPC if features_NPC.shape[1] == len(used_U) else features_NPC[:, used_U]

    def visual_embed(self, frames_NCHW: Tensor, batch_size: int = TOWER_BATCH) -> Tensor:
        """uint8 frames [N, 3, 384, 384] -> frame tokens [N, 49, H] (gradients reach the projector, never the tower)."""
        chunks = [self.project(self.tower_features(chunk, batch_size)) for chunk in frames_NCHW.split(batch_size)]
        return torch.cat(chunks) if len(chunks) != 1 else chunks[0]

    def vision_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the frozen tower: what stored features depend on."""
        return self.model.vision_tower.named_parameters()

    def compile_vision(self) -> None:
        self.model.vision_tower.compile_layers()

    def fuse_vision(self) -> None:
        """For many frames on a GPU: `tower_features` gives the patches used alone, in fewer and shorter kernels (fused_tower.py)."""
        layers = self.model.vision_tower.siglip.encoder.layers
        _, used_U = _pooling(self.config.patches_per_side, self.config.tokens_per_side, self.decoder_device)
        fuse_layers(layers, used_U)

    def vision_flops(self) -> tuple[int, int]:
        """FLOPs of a frame's forward pass: (tower, projector on every patch)."""
        vision, hidden = self.config.vision, self.config.hidden_size
        patches = self.config.patches_per_side**2
        tower = 2 * sum(p.numel() for _, p in self.vision_parameters()) + 4 * vision.num_hidden_layers * patches * vision.hidden_size
        return patches * tower, patches * 2 * (vision.hidden_size * hidden + hidden**2)

    # ---- the decoder a layer at a time: keys and values are kept by the caller ----

    @property
    def decoder_layers(self) -> Sequence[Qwen2DecoderLayer]:
        return cast(Sequence[Qwen2DecoderLayer], self.model.layers)

    @property
    def head_dim(self) -> int:
        return self.model.layers[0].self_attn.head_dim

    @property
    def decoder_dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    @property
    def decoder_device(self) -> torch.device:
        return self.model.norm.weight.device

    def rotary(self, positions_NX: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [N, X, D] float32 of tokens at these ranks; a head is turned by halves, as in Qwen2."""
        return self.model.rotary_emb(torch.empty(0, device=self.decoder_device), positions_NX)

    @staticmethod
    def queries_keys_values(
        layer: Qwen2DecoderLayer, hidden_NTH: Tensor, merged: tuple[Tensor, Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a layer attends with, before it is turned: [N, T, Q, D], [N, T, G, D], [N, T, G, D]. merged: `merged_projections`."""
        attention = layer.self_attn
        x_NTH = layer.input_layernorm(hidden_NTH)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        if merged is None:
            parts = [projection(x_NTH) for projection in projections]
        else:
            parts = F.linear(x_NTH, *merged).split([projection.out_features for projection in projections], dim=-1)
        query, key, value = (part.view(*part.shape[:2], -1, attention.head_dim) for part in parts)
        return query, key, value

    @staticmethod
    def merged_projections(layer: Qwen2DecoderLayer) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer's query, key and value projections, one below the other: one matrix product in place of three."""
        projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        biases = [p.bias.detach() for p in projections if p.bias is not None]
        return torch.cat([p.weight.detach() for p in projections]), torch.cat(biases) if biases else None

    @staticmethod
    def after_attention(layer: Qwen2DecoderLayer, hidden_NTH: Tensor, seen_NTC: Tensor, zeros_H: Tensor | None = None) -> Tensor:
        """The rest of a layer; seen_NTC: what attention gave, the heads side by side. zeros_H: a bias of zeros for the last product, which
        PyTorch then gives to cuBLASLt; for few tokens that reads these weights 9% faster (H100), with the same result."""
        hidden_NTH = hidden_NTH + layer.self_attn.o_proj(seen_NTC)
        normed_NTH, mlp = layer.post_attention_layernorm(hidden_NTH), layer.mlp
        if zeros_H is None:
            return hidden_NTH + mlp(normed_NTH)
        return hidden_NTH + F.linear(mlp.act_fn(mlp.gate_proj(normed_NTH)) * mlp.up_proj(normed_NTH), mlp.down_proj.weight, zeros_H)

    def final_norm(self, hidden_NTH: Tensor) -> Tensor:
        return self.model.norm(hidden_NTH)

    # ---- text and both ----

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def joint_embed(self, input_ids_BT: Tensor, visual_embeds_NKH: Tensor | None) -> Tensor:
        """Embed a token sequence whose `<image>` placeholders are replaced, in order, by the frame tokens.

        Raises ValueError when the number of placeholders is not the tokens of that many frames.
        """
        image_BT = input_ids_BT.eq(self.config.image_token)
        # The placeholder's id can lie outside the embedding table: look up id 0 there, it is overwritten below.
        embeds_BTH = self.embed_tokens(input_ids_BT.masked_fill(image_BT, 0))
        placeholders = int(image_BT.sum())
        given = 0 if visual_embeds_NKH is None else visual_embeds_NKH.shape[0] * visual_embeds_NKH.shape[1]
        if placeholders != given:
            raise ValueError(f"the text has {placeholders} <image> placeholders but the frames give {given} tokens")
        if visual_embeds_NKH is None:
            return embeds_BTH
        flat = visual_embeds_NKH.reshape(given, -1).to(embeds_BTH.dtype)
        return embeds_BTH.masked_scatter(image_BT.unsqueeze(-1).expand_as(embeds_BTH), flat)

    def decode(
        self,
        inputs_embeds_BTH: Tensor,
        attention_mask: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Decoder over embedded inputs -> hidden states [B, T, H] after the final norm; `past_key_values` is extended in place."""
        return self.model(
            inputs_embeds=inputs_embeds_BTH,
            attention_mask=attention_mask,
            position_ids=position_ids_BT,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        ).last_hidden_state

    def forward(
        self,
        input_ids: Tensor,
        frames: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Token ids [B, T] with placeholders and uint8 frames -> language logits [B, T, V]."""
        embeds_BTH = self.joint_embed(input_ids, None if frames is None else self.visual_embed(frames))
        return self.lm_head(self.decode(embeds_BTH, attention_mask, position_ids, past_key_values))
