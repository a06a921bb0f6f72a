"""The demo's base: made by the script in the published layouts, and the shipped weights as they are in the repository."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from paths import shared_fixture
from safetensors import safe_open

from aha.conversation import load_tokenizer
from aha.demo import pictures, pretrain, stages
from aha.demo.run import ADAPTER, BASE
from aha.demo.small_model import WORDS, initialise_decoder, new_model
from aha.demo.streams import draw_runs
from aha.models import AhaModel


def drawn_here(seed, stage, batches, count):
    for batch in range(batches):
        yield pictures.draw_batch((seed, stage, batch), count)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        for module in (stages, pictures):
            patch.setattr(module, "drawn_ahead", drawn_here)
        steps = ["--vision_steps", "2", "--bank_scenes", "32", "--language_steps", "4", "--adapter_steps", "2"]
        pretrain.main(["--output", str(folder), *steps])
    return folder


def shapes(path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def general(names) -> set[str]:
    return {re.sub(r"layers\.\d+", "layers.N", name) for name in names}


def test_names_are_those_of_the_published_layouts(made):
    reference = shared_fixture("reference/llava-onevision-qwen2-tiny-ov").parent
    base, adapter = shapes(made / stages.BASE / "model.safetensors"), shapes(made / stages.ADAPTER / "adapter_model.safetensors")
    assert general(base) == general(shapes(reference / "llava-onevision-qwen2-tiny-ov" / "model.safetensors"))
    assert general(adapter) == general(shapes(reference / "mmduet-adapter" / "adapter_model.safetensors"))
    assert adapter["base_model.model.relevance_head.weight"] == adapter["base_model.model.informative_head.weight"] == (2, 96)
    config = json.loads((made / stages.BASE / "config.json").read_text())
    stored = {name for name in general(base) if "vision_model.encoder.layers" in name}
    layers = {int(m.group(1)) for name in base if (m := re.search(r"vision_model\.encoder\.layers\.(\d+)", name))}
    assert stored and config["vision_config"]["num_hidden_layers"] == len(layers) + 1, "the tower's last layer is not stored"


def test_made_base_loads_and_scores(made):
    model = AhaModel.from_base(made / stages.BASE, made / stages.ADAPTER)
    tokenizer = load_tokenizer(made / stages.ADAPTER)
    assert model.config.image_token_index == tokenizer.convert_tokens_to_ids("<image>")
    assert model.visual_embed(torch.zeros(2, 3, 384, 384, dtype=torch.uint8)).shape == (2, 49, 96)
    settings = json.loads((made / stages.ADAPTER / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (16, 32, stages.BASE)


def test_shipped_weights():
    files = [BASE / "model.safetensors", ADAPTER / "adapter_model.safetensors"]
    assert sum(file.stat().st_size for file in files) < 4e6
    model = AhaModel.from_base(BASE, ADAPTER)
    assert model.config.heads == {"informative": 2, "relevance": 2}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_shipped_model_describes_pictures_in_words():
    """The base knows the words: greedy descriptions of single pictures name most things that are there."""
    from aha.conversation import DEFAULT_SYSTEM_PROMPT, DuetFormat, Turn

    model, duet = AhaModel.from_base(BASE, ADAPTER), DuetFormat(load_tokenizer(ADAPTER))
    drawn, scenes = pictures.draw_pictures(np.random.default_rng(77), 8)
    named = total = 0
    for scene, frame in zip(scenes, drawn.frames[::2]):
        start = duet.render(
            [Turn("system", DEFAULT_SYSTEM_PROMPT), Turn("user", "Show me everything"), Turn("stream", num_frames=1)]
        ).input_ids
        ids = [*start, *duet.assistant_header]
        with torch.no_grad():
            for _ in range(30):
                tokens = torch.tensor([ids])
                hidden = model.decode(model.joint_embed(tokens, model.visual_embed(frame[None])))
                ids.append(int(model.lm_head(hidden[0, -1]).argmax()))
                if ids[-1] == duet.im_end_id:
                    break
        said = duet.tokenizer.decode(ids[len(start) :])
        words = {scene.place} | {word for thing in scene.things for word in (thing.colour, thing.pattern)}
        named += sum(word in said for word in words)
        total += len(words)
    assert named / total > 0.6, f"{named} of {total} words; chance is about 0.25"


# ---- parts ----


def test_labels_of_cells():
    drawn, scenes = pictures.draw_pictures(np.random.default_rng(0), 8)
    labels = pictures.cell_labels(drawn)
    for index in range(len(drawn.frames)):
        scene = scenes[index // 2]
        colours = {WORDS["colour"][i] for i in labels["colour"][index].tolist() if 0 <= i < len(WORDS["colour"])}
        assert colours <= {thing.colour for thing in scene.things}
        places = {WORDS["place"][i] for i in labels["place"][index].tolist() if 0 <= i < len(WORDS["place"])}
        assert places <= {scene.place}
    nothing = len(WORDS["place"])
    both = (labels["colour"] < len(WORDS["colour"])) & (labels["colour"] >= 0) & (labels["place"] < nothing) & (labels["place"] >= 0)
    assert both.float().mean() < 0.15, "a cell shows a thing or the bare place, seldom both"


def test_batches_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(pictures.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(pictures, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    ahead = [batch for batch, _ in pictures.drawn_ahead(3, 20, 6, 1)]
    here = [batch for batch, _ in drawn_here(3, 20, 6, 1)]
    assert all(torch.equal(a.frames, b.frames) and torch.equal(a.cover, b.cover) for a, b in zip(ahead, here))
    assert len(ahead) == 6 and not torch.equal(ahead[0].frames, ahead[1].frames)


def test_runs_of_a_stream():
    hits = np.zeros(40, bool)
    hits[[6, 7]] = True
    chosen, change = draw_runs(hits, np.random.default_rng(0), 200)
    assert len(chosen) == len(change) == 200 and change[0] == 1
    assert (np.diff(chosen // 2)[change[1:] == 0] == 0).all(), "within a run the scene stays"
    assert 0.25 < hits[chosen].mean() < 0.75


def test_decoder_starts_with_queries_like_keys():
    model = new_model(0)
    initialise_decoder(model)
    for layer in model.model.layers:
        torch.testing.assert_close(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
