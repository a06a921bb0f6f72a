"""Another base (test/second_base.py) streams what it is trained on, and is saved and loaded: nothing of the first base is taken for granted."""

from __future__ import annotations

import pytest
import torch
from paths import shared_fixture
from second_base import SecondHeadsConfig, SecondWithHeads
from streaming_model import difference, joined

from aha.conversation import DuetFormat, Turn, load_tokenizer
from aha.streaming import OnlineEngine, Session

TOKENS = 9  # a frame


@pytest.fixture(scope="module")
def model() -> SecondWithHeads:
    torch.manual_seed(0)
    config = SecondHeadsConfig(
        vocab_size=1100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, image_token_index=1003,
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_channels": 3, "image_size": 384, "patch_size": 14,
        },
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = SecondWithHeads(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    model.config.image_token_index = tokenizer().convert_tokens_to_ids("<image>")
    return model


def tokenizer():
    return load_tokenizer(shared_fixture("reference/aha-adapter"))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained_scores(model, frames):
    """Of the training forward pass on the whole conversation."""
    turns = [Turn("system", "watch"), Turn("user", "what is new?"), Turn("stream", num_frames=len(frames))]
    rendered = DuetFormat(tokenizer(), TOKENS).render(turns)
    assert len(rendered.image_token_positions) == TOKENS * len(frames) and model.config.frame.tokens == TOKENS
    with torch.no_grad():
        return model(torch.tensor([rendered.input_ids]), frames=frames).scores()


def test_a_session_scores_what_the_training_forward_scores(model, frames):
    expected = trained_scores(model, frames)
    assert float(expected.relevance.std()) > 1e-3  # the pictures matter
    for chunk in (1, 2, 6):
        session = Session(model, "what is new?", tokenizer=tokenizer(), system_prompt="watch")
        assert difference(joined([session.push(part) for part in frames.split(chunk)]), expected) < 1e-4
    one = Session(model, "what is new?", tokenizer=tokenizer(), system_prompt="watch", cache="dynamic_sink", window=512)
    assert difference(joined([one.push(frame) for frame in frames]), expected) < 1e-4


def test_the_engine_serves_it(model, frames):
    engine = OnlineEngine(model, window=512, max_streams=2, tokenizer=tokenizer())
    sessions = [engine.open("what is new?", system_prompt="watch") for _ in range(2)]
    online = [engine.push(sessions, [frame, frame]) for frame in frames]
    expected = trained_scores(model, frames)
    assert difference(joined([scores.rows(0, 1) for scores in online]), expected) < 1e-4
    assert difference(joined([scores.rows(1, 2) for scores in online]), expected) < 1e-4


def test_it_is_saved_and_loaded(model, frames, tmp_path):
    model.save_pretrained(tmp_path)
    again = SecondWithHeads.from_pretrained(tmp_path)
    assert difference(trained_scores(again, frames), trained_scores(model, frames)) == 0
