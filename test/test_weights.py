"""--weights bf16, 8bit, 4bit: the decoder's weights in fewer bits at inference."""

from __future__ import annotations

import pytest
import torch

from aha.core import extras
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.quantized import Linear4bit, quantize_weights
from aha.scoring.model_choice import ModelChoice
from aha.streaming import Session
from aha.streaming.decoder import Decoder
from aha.streaming.session import tokenizer_of

PICTURES = torch.randint(0, 256, (4, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load(**settings) -> AhaModel:
    return ModelChoice(device="cpu", **settings).load()[0]


def relevance(model: AhaModel) -> torch.Tensor:
    session = Session(model, tokenizer=tokenizer_of(model), query="All the red things in one video")
    return torch.cat([session.push(picture).relevance for picture in PICTURES])


def test_four_bits_are_smaller_and_close():
    whole, small = load(), load(weights="4bit")
    layers = [name for name, module in small.named_modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 7 * len(small.decoder_layers) and all(name.startswith("model.layers.") for name in layers)
    before = sum(whole.get_parameter(f"{name}.weight").numel() * 2 for name in layers)  # in 16 bits
    after = sum(small.get_submodule(name).packed.numel() + small.get_submodule(name).scale.numel() * 2 for name in layers)
    assert after < 0.3 * before
    assert small.weight_bits == 4 and torch.equal(small.lm_head.weight, whole.lm_head.weight)
    exact, ours = relevance(whole), relevance(small)
    assert 0 < (ours - exact).abs().max() < 0.1


def test_eight_bits_are_closer_than_four():
    pytest.importorskip("torchao")
    exact, ours, four = relevance(load()), relevance(load(weights="8bit")), relevance(load(weights="4bit"))
    assert 0 < (ours - exact).abs().max() < 0.02 < (four - exact).abs().max() + 0.02
    assert (ours - exact).abs().mean() < (four - exact).abs().mean()


def test_only_one_layer_at_a_time_is_whole_on_the_device(monkeypatch):
    """What is quantized is replaced at once: a card need not hold the 16-bit weights beside the 4-bit ones."""
    model, done = load(), []

    class Watched(Linear4bit):
        def __init__(self, linear, device):
            done.append(sum(isinstance(module, Linear4bit) for module in model.modules()))
            super().__init__(linear, device)

    monkeypatch.setattr("aha.models.quantized.Linear4bit", Watched)
    quantize_weights(model, 4, torch.device("cpu"))
    assert done == list(range(7 * len(model.decoder_layers)))


def test_a_compiled_decoder_merges_no_small_weights(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the compiler itself takes a minute
    small = load(weights="4bit")
    assert Decoder(small, compiled=True).merged == [None] * len(small.decoder_layers)
    assert Decoder(load(), compiled=True).merged[0] is not None


def test_what_cannot_be_is_one_sentence(monkeypatch):
    assert load(weights="bf16").decoder_dtype == torch.bfloat16
    with pytest.raises(UserError, match="--weights bf16 means --dtype bfloat16, and --dtype float32 was given"):
        ModelChoice(weights="bf16", dtype="float32")
    for wrong, said in {
        "3bit": "none of bf16, 8bit, 4bit.$",
        "grid.json": "none of .*what a grid search found is given as --fusion FILE",
    }.items():
        with pytest.raises(UserError, match=f"--weights {wrong} is {said}"):
            ModelChoice(weights=wrong)
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with pytest.raises(
        UserError, match=r"--weights 8bit needs the package torchao, which is not installed: pip install 'aha-video\[quantized\]'"
    ):
        ModelChoice(weights="8bit")
    ModelChoice(weights="4bit")


def test_scores_of_other_weights_are_other_scores():
    """What is kept of an unfinished run is kept apart."""
    keys = [ModelChoice(weights=weights).weights_key() for weights in (None, "4bit")]
    assert keys[0] != keys[1]
