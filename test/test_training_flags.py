"""--loss_weights and --lora_targets: what they change, and what is refused."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest

from aha.errors import UserError
from aha.models.adapters import new_lora
from aha.models.losses import MMDUET_WEIGHTS, LossWeights
from aha.training.run import loss_weights


def test_loss_weights_change_what_they_name():
    assert loss_weights("aha", None) == LossWeights() and loss_weights("mmduet", None) == MMDUET_WEIGHTS
    changed = asdict(loss_weights("aha", ["relevance=4", "tv=0", "lm=1e-2"]))
    assert changed == asdict(LossWeights()) | {"relevance": 4.0, "tv": 0.0, "lm": 0.01}
    for item in ("relevence=4", "relevance", "relevance=-1", "relevance=nan"):
        with pytest.raises(UserError, match="write NAME=NUMBER"):
            loss_weights("aha", [item])


def test_lora_targets_choose_layers_of_the_decoder():
    chosen = new_lora(targets=["q_proj", "v_proj"]).target_modules
    named = {name: bool(re.fullmatch(chosen, name)) for name in ("model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.k_proj", "model.vision_tower.q_proj")}  # fmt: skip
    assert list(named.values()) == [True, False, False]
    assert re.fullmatch(new_lora().target_modules, "model.layers.3.mlp.up_proj")
    with pytest.raises(UserError, match="--lora_targets qproj"):
        new_lora(targets=["qproj"])
