"""Loading and saving: both published layouts, shards anywhere, and every defect named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from llava_next import CheckpointError, LlavaNextConfig, LlavaNextForCausalLM, load_base, save_llava_next
from llava_next.checkpoint import TOWER, infer_vision, published_name
from paths import shared_fixture
from safetensors.torch import load_file as map_file
from safetensors.torch import save_file

from aha.errors import UserError
from aha.models import AhaModel
from aha.models.adapters import new_lora, save_adapter, trainable


def load_file(path):
    """The tensors, cloned: these tests overwrite the file that the originals are mapped from."""
    return {name: tensor.clone() for name, tensor in map_file(path).items()}


@pytest.fixture(scope="module")
def base():
    return shared_fixture("reference/llava-onevision-qwen2-tiny-ov")


@pytest.fixture(scope="module")
def adapter():
    return shared_fixture("reference/aha-adapter")


@pytest.fixture
def broken_base(base, tmp_path):
    """A copy of the base to break, and its tensors."""
    folder = tmp_path / "llava-broken"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").chmod(0o644)
    return folder, load_file(folder / "model.safetensors")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_round_trip_of_the_published_layout(base, tmp_path):
    first = load_base(base)
    save_llava_next(first, tmp_path / "again", max_shard_bytes=300_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 3
    assert same(first, load_base(tmp_path / "again"))


def test_round_trip_of_our_own_layout(base, adapter, tmp_path):
    first = AhaModel.from_base(base, adapter)
    first.save_pretrained(tmp_path / "ours", max_shard_bytes=500_000)
    again = AhaModel.from_pretrained(tmp_path / "ours")
    assert same(first, again)
    assert again.config.image_token_index == 1003
    assert {"config.json", "README.md", "model.safetensors.index.json"} <= {p.name for p in (tmp_path / "ours").iterdir()}
    assert same(again, AhaModel.from_base(tmp_path / "ours"))


def test_half_precision_keeps_float32_heads(base, adapter, tmp_path):
    first = AhaModel.from_base(base, adapter, dtype=torch.bfloat16)
    assert first.relevance_head.weight.dtype == torch.float32 and first.lm_head.weight.dtype == torch.bfloat16
    first.save_pretrained(tmp_path / "half")
    assert same(first, AhaModel.from_pretrained(tmp_path / "half", dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("merge", [True, False])
def test_half_precision_scores_stay_near_float32(base, adapter, dtype, merge):
    frames = torch.randint(0, 256, (3, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1001, 333, 198, 1002] + [1003] * 147])
    full, half = AhaModel.from_base(base, adapter), AhaModel.from_base(base, adapter, dtype=dtype, merge=merge)
    with torch.no_grad():
        a, b = full(ids, frames=frames).scores(), half(ids, frames=frames).scores()
    assert (a.relevance - b.relevance).abs().max() < 0.05


def test_adapter_round_trip(base, adapter, tmp_path):
    first = AhaModel.from_base(base, adapter, merge=False)
    save_adapter(first, tmp_path, base=str(base))
    assert same(first, AhaModel.from_base(base, tmp_path, merge=False))
    published, ours = load_file(adapter / "adapter_model.safetensors"), load_file(tmp_path / "adapter_model.safetensors")
    assert published.keys() == ours.keys() and all(torch.equal(published[k], ours[k]) for k in ours)
    assert same(AhaModel.from_pretrained(tmp_path), AhaModel.from_base(base, adapter))  # the base is named in the adapter


def test_peft_itself_loads_what_we_save(base, adapter, tmp_path):
    """Our adapters are PEFT adapters: PeftModel on the bare model gives the same hidden states."""
    from peft import LoraConfig, PeftModel

    ours = AhaModel.from_base(base, adapter, merge=False)
    save_adapter(ours, tmp_path, base=str(base))
    bare = AhaModel.from_base(base)
    config = LoraConfig.from_pretrained(str(tmp_path))
    config.task_type = None  # the wrapper for text generation wants transformers' generate()
    wrapped = PeftModel.from_pretrained(bare, str(tmp_path), config=config).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        hidden_ours = ours.decode(ours.embed_tokens(ids))
        inner = wrapped.get_base_model()
        assert torch.allclose(inner.decode(inner.embed_tokens(ids)), hidden_ours, atol=1e-6)
        assert torch.allclose(inner.score(hidden_ours[0]).relevance, ours.score(hidden_ours[0]).relevance, atol=1e-6)


def test_saving_with_live_lora_is_refused(base, adapter, tmp_path):
    with pytest.raises(ValueError, match="merge"):
        AhaModel.from_base(base, adapter, merge=False).save_pretrained(tmp_path / "no")


def test_without_adapter_heads_start_as_stated(base):
    a, b = AhaModel.from_base(base, seed=1), AhaModel.from_base(base, seed=1)
    assert torch.equal(a.relevance_head.weight, b.relevance_head.weight)
    assert not a.uncertainty_head.weight.any()


def test_transformers_layout_gives_the_same_model(tmp_path):
    """A tiny LlavaOnevisionForConditionalGeneration saved by transformers: same features, same language logits."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    torch.manual_seed(0)
    text = Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=100,
                       tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 5e5})  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    theirs = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(
        text_config=text, vision_config=vision, image_token_index=99, video_token_index=98, tie_word_embeddings=False, vision_feature_layer=-1,
        vision_feature_select_strategy="full")).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = load_base(tmp_path)
    assert ours.config.rope_parameters["rope_theta"] == 5e5 and ours.config.image_token_index == 99
    frames = torch.randint(0, 256, (2, 3, 384, 384), dtype=torch.uint8)
    ids = torch.randint(0, 90, (1, 20))
    with torch.no_grad():
        inner = theirs.model
        features = inner.vision_tower(ours.pixel_values(frames), output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(ours.tower_features(frames), features, atol=1e-4)
        assert torch.allclose(ours.model.mm_projector(features), inner.multi_modal_projector(features), atol=1e-5)
        assert torch.allclose(ours(ids), theirs(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize("theirs", [
    "language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight",
])  # fmt: skip
def test_names_of_every_age_of_the_transformers_layout(theirs):
    assert published_name(theirs) == "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("theirs", [
    "vision_tower.vision_model.encoder.layers.1.layer_norm1.bias", "model.vision_tower.vision_model.encoder.layers.1.layer_norm1.bias",
    "model.vision_tower.encoder.layers.1.layer_norm1.bias", TOWER + "encoder.layers.1.layer_norm1.bias",
])  # fmt: skip
def test_tower_names_of_every_age(theirs):
    assert published_name(theirs) == TOWER + "encoder.layers.1.layer_norm1.bias"


def test_tower_sizes_are_read_off_the_tensors(broken_base):
    folder, _ = broken_base
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    vision = load_base(folder).config.vision
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (
        48,
        128,
        3,
        384,
        14,
    )
    del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        load_base(folder)


def test_published_tower_needs_no_vision_config():
    shapes = {TOWER + "embeddings.patch_embedding.weight": (1152, 3, 14, 14), TOWER + "embeddings.position_embedding.weight": (729, 1152)}
    shapes |= {TOWER + f"encoder.layers.{i}.mlp.fc1.weight": (4304, 1152) for i in range(26)}
    vision = infer_vision(shapes, {}, "here")
    assert (vision["num_attention_heads"], vision["num_hidden_layers"], vision["image_size"]) == (16, 26, 384)


def test_tied_vocabulary_may_be_absent(broken_base):
    folder, tensors = broken_base
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight"):
        load_base(folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_base(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_shards_split_at_odd_places(broken_base, base):
    folder, tensors = broken_base
    (folder / "model.safetensors").unlink()
    names = sorted(tensors, key=lambda name: hash(name[::-1]))
    cuts = [0, 1, 40, 41, len(names)]
    weight_map = {}
    for i, (a, b) in enumerate(zip(cuts, cuts[1:])):
        filename = f"model-{i + 1:05d}-of-00004.safetensors"
        save_file({name: tensors[name] for name in names[a:b]}, folder / filename)
        weight_map |= dict.fromkeys(names[a:b], filename)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(load_base(folder), load_base(base))
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00004.safetensors"):
        load_base(folder)


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


BREAKS = {
    "missing tensor": (lambda f, t: rewrite(f, {k: v for k, v in t.items() if k != "model.norm.weight"}), "lacks model.norm.weight"),
    "left-over tensor": (lambda f, t: rewrite(f, t | {"model.extra.weight": torch.zeros(2)}), "model.extra.weight"),
    "misshapen tensor": (lambda f, t: rewrite(f, t | {"model.norm.weight": torch.zeros(63)}), r"model.norm.weight is \[63\], not \[64\]"),
    "truncated file": (lambda f, t: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900_000]), "truncated"),
    "cut header": (lambda f, t: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:100]), "complete"),
    "empty file": (lambda f, t: (f / "model.safetensors").write_bytes(b""), "0 bytes"),
    "pickle as safetensors": (lambda f, t: torch.save(t, f / "model.safetensors"), "pickle"),
    "no weights": (lambda f, t: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin"),
    "no config": (lambda f, t: (f / "config.json").unlink(), "config.json"),
    "broken config": (lambda f, t: (f / "config.json").write_text("{"), "JSON"),
    "another model": (lambda f, t: (f / "config.json").write_text("{}"), "hidden_size"),
    "no tower": (lambda f, t: rewrite(f, {k: v for k, v in t.items() if "vision_tower" not in k}), "vision tower"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_base_is_named(broken_base, what):
    folder, tensors = broken_base
    damage, message = BREAKS[what]
    damage(folder, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_base(folder)
    with pytest.raises(UserError, match=message):  # what a command prints
        AhaModel.from_base(folder)


COMMANDS = {
    "aha.score": ["--video", "clip.mp4", "--query", "q", "--output", "scores.json"],
    "aha.merge": ["--output", "merged"],
    "aha.train": ["--dataset_config", "mixture.json", "--output_dir", "run"],
    "aha.cli": ["highlights", "clip.mp4", "--query", "q", "--output", "found"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_is_wrong_with_a_checkpoint_in_one_sentence(command, broken_base, base, adapter, tmp_path):
    folder, tensors = broken_base
    BREAKS["truncated file"][0](folder, tensors)
    folder = folder.rename(tmp_path / base.name)
    shutil.copy(shared_fixture("reference/videos/landscape.mp4"), tmp_path / "clip.mp4")
    arguments = [*COMMANDS[command], "--llm_pretrained", str(folder), "--lora_pretrained", str(adapter)]
    run = subprocess.run([sys.executable, "-m", command, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr and "truncated" in run.stderr and run.stderr.count("error:") == 1
    assert not any((tmp_path / name).exists() for name in ("scores.json", "merged/config.json", "found/highlights.json"))


def adapter_copy(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def drop(name):
    return lambda f: save_file(
        {k: v for k, v in load_file(f / "adapter_model.safetensors").items() if name not in k}, f / "adapter_model.safetensors"
    )


def wider(f):
    save_file(
        {k: torch.nn.functional.pad(v, (0, 32)) for k, v in load_file(f / "adapter_model.safetensors").items()},
        f / "adapter_model.safetensors",
    )


def setting(**changes):
    def change(f):
        config = json.loads((f / "adapter_config.json").read_text()) | changes
        (f / "adapter_config.json").write_text(json.dumps(config))

    return change


def not_a_number(f):
    tensors = load_file(f / "adapter_model.safetensors")
    next(v for k, v in tensors.items() if "lora_B" in k)[0, 0] = float("nan")
    save_file(tensors, f / "adapter_model.safetensors")


ADAPTER_BREAKS = {
    "a LoRA matrix is missing": (drop("layers.2.mlp.up_proj.lora_B"), r"lacks model.layers.2.mlp.up_proj.lora_B"),
    "a head is missing": (drop("relevance_head"), "no relevance_head"),
    "for another size": (wider, "wrong shape"),
    "of another kind": (setting(peft_type="IA3"), "IA3"),
    "DoRA": (setting(use_dora=True), "DoRA"),
    "not a number": (not_a_number, "NaN"),
    "truncated": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:5000]),
        "complete|truncated",
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
}


@pytest.mark.parametrize("what", ADAPTER_BREAKS)
def test_broken_adapter_is_named(base, adapter, tmp_path, what):
    damage, message = ADAPTER_BREAKS[what]
    folder = adapter_copy(adapter, tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        AhaModel.from_base(base, folder)


def test_pickled_adapter_is_read_without_running_code(base, adapter, tmp_path):
    folder = adapter_copy(adapter, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert same(AhaModel.from_base(base, folder), AhaModel.from_base(base, adapter))
    torch.save({"x": Evil()}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="plain tensors"):
        AhaModel.from_base(base, folder)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


def test_keys_with_peft_infix_load(base, adapter, tmp_path):
    """Trainers that save PEFT's inner names write `lm_head.modules_to_save.default.weight` and `lora_A.default.weight`."""
    folder = adapter_copy(adapter, tmp_path)
    renamed = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        for part in ("lora_A.", "lora_B."):
            key = key.replace(part, part + "default.")
        for module in ("lm_head.", "_head."):
            if module in key and "default" not in key:
                key = key.replace(module, module + "modules_to_save.default.", 1)
        renamed[key] = tensor
    save_file(renamed, folder / "adapter_model.safetensors")
    assert same(AhaModel.from_base(base, folder), AhaModel.from_base(base, adapter))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "plain-name"])
def test_missing_folder_is_one_sentence(name):
    with pytest.raises(UserError, match="does not exist"):
        AhaModel.from_base(name)


def test_hub_id_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be downloaded"):
        AhaModel.from_base("lmms-lab/llava-onevision-qwen2-7b-ov")


def test_new_lora_changes_nothing_at_the_start(base):
    from aha.models.adapters import add_lora

    torch.manual_seed(0)
    plain, fresh = AhaModel.from_base(base), AhaModel.from_base(base)
    add_lora(fresh, new_lora())
    names = trainable(fresh, ["mm_projector", "lm_head", "informative_head", "relevance_head", "uncertainty_head"])
    assert len([n for n in names if ".lora_" in n]) == 4 * 7 * 2 and not any("vision_tower" in n for n in names)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(plain.decode(plain.embed_tokens(ids)), fresh.decode(fresh.embed_tokens(ids)))


def test_unknown_module_to_train_is_refused(base):
    with pytest.raises(UserError, match="no_such_head"):
        trainable(AhaModel.from_base(base), ["no_such_head"])


def test_frame_count_must_match_placeholders():
    config = LlavaNextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=50,
                             image_token_index=49, vision_config={"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                                                                  "num_attention_heads": 2, "image_size": 384, "patch_size": 14})  # fmt: skip
    config._attn_implementation = "sdpa"
    model = LlavaNextForCausalLM(config)
    with pytest.raises(ValueError, match="placeholders"):
        model(torch.full((1, 48), 49), frames=torch.zeros(1, 3, 384, 384, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        model(torch.full((1, 49), 49), frames=torch.zeros(1, 3, 384, 384))


@pytest.mark.parametrize(("old", "heads"), [
    ({"relevance_outputs": 2, "uncertainty": False}, {"informative": 2, "relevance": 2}),
    ({"relevance_outputs": 1, "uncertainty": True}, {"informative": 2, "relevance": 1, "uncertainty": 1}),
])  # fmt: skip
def test_whole_models_of_before_say_their_heads_in_other_words(old, heads, adapter, base, tmp_path):
    family = "mmduet" if heads["relevance"] == 2 else "aha"
    model = AhaModel.from_base(base, adapter.with_name(f"{family}-adapter"))
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("heads") == heads == model.config.heads and model.config.family == family
    (tmp_path / "config.json").write_text(json.dumps({**settings, **old}))
    again = AhaModel.from_pretrained(tmp_path)
    assert again.config.heads == heads and same(again, model)
