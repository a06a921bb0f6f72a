"""Checkpoints that used to load wrongly without a word: heads, layouts, adapters that are not whole, variants of LoRA, old shards, sizes."""

from __future__ import annotations

import json
import shutil

import mutate_checkpoints
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from llava_next import load_base, resolve_folder, save_llava_next
from paths import shared_fixture
from safetensors.torch import load_file as map_file
from safetensors.torch import save_file

from aha.conversation import load_tokenizer
from aha.errors import UserError
from aha.models import AhaModel
from aha.models.adapters import add_lora, base_of, merge_adapter, new_lora, portable_base, save_adapter
from aha.models.lora_settings import lora_settings

BASE = shared_fixture("reference/llava-onevision-qwen2-tiny-ov")
ADAPTER = shared_fixture("reference/aha-adapter")
FRAMES = torch.randint(0, 256, (2, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def load_file(path):
    return {name: tensor.clone() for name, tensor in map_file(path).items()}


@pytest.fixture
def copy(tmp_path):
    """A copy of one of the folders to break: (folder, its tensors)."""

    def make(source, name=None):
        folder = tmp_path / (name or source.name)
        shutil.copytree(source, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder, load_file(next(folder.glob("*model.safetensors")))

    return make


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def relevance(base, adapter, **how):
    return AhaModel.from_base(base, adapter, **how).stream(query="x").push(FRAMES).relevance


def to_transformers_layout(source, folder, padding=0):
    """As transformers' converter writes it: other names, settings in text_config, the vocabulary filled up by `padding` rows."""
    folder.mkdir()
    names = [("model.vision_tower.vision_tower.", "vision_tower."), ("model.mm_projector.0", "multi_modal_projector.linear_1"),
             ("model.mm_projector.2", "multi_modal_projector.linear_2"), ("model.image_newline", "image_newline"),
             ("model.", "language_model.model."), ("lm_head", "language_model.lm_head")]  # fmt: skip
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if padding and name in ("lm_head.weight", "model.embed_tokens.weight"):
            tensor = torch.cat([tensor, torch.full((padding, tensor.shape[1]), 9.0)])
        ours, theirs = next(pair for pair in names if name.startswith(pair[0]))
        tensors[theirs + name.removeprefix(ours)] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config = {
        "model_type": "llava_onevision",
        "text_config": config,
        "vision_config": config.get("vision_config"),
        "image_token_index": config.get("image_token_index"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return folder, tensors


# ---- heads ----


@pytest.mark.parametrize("above", [True, False])
def test_a_head_that_is_not_stored_is_the_embedding_if_either_section_says_so(tmp_path, above):
    folder, tensors = to_transformers_layout(BASE, tmp_path / "half-b-hf")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = not above
    change(folder / "config.json", tie_word_embeddings=above, text_config=raw["text_config"])
    model = load_base(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    raw["text_config"]["tie_word_embeddings"] = False
    change(folder / "config.json", tie_word_embeddings=False, text_config=raw["text_config"])
    with pytest.raises(UserError, match='lacks lm_head.weight.*"tie_word_embeddings": true'):
        load_base(folder)


def test_a_head_that_is_stored_is_kept_though_the_config_ties_it(copy):
    folder, tensors = copy(BASE)
    change(folder / "config.json", tie_word_embeddings=True)
    assert torch.equal(load_base(folder).lm_head.weight, tensors["lm_head.weight"])


def test_a_published_adapter_fits_the_padded_vocabulary_of_the_transformers_layout(tmp_path):
    folder, _ = to_transformers_layout(BASE, tmp_path / f"{BASE.name}-hf", padding=64)
    assert torch.equal(relevance(folder, ADAPTER), relevance(BASE, ADAPTER))
    folder, _ = to_transformers_layout(BASE, tmp_path / "another-model", padding=500)
    with pytest.raises(UserError, match="wrong shape"):
        AhaModel.from_base(folder, ADAPTER)


def test_a_frame_has_the_tokens_of_the_published_adapters_whatever_the_base_says(copy):
    folder, _ = copy(BASE)
    change(folder / "config.json", mm_spatial_pool_stride=2)
    assert AhaModel.from_base(folder, ADAPTER).config.tokens_per_frame == 49


# ---- adapters ----


@pytest.mark.parametrize("module", ["lm_head", "mm_projector"])
def test_an_adapter_that_lacks_a_module_it_lists_is_refused(copy, module):
    folder, tensors = copy(ADAPTER)
    save_file({k: v for k, v in tensors.items() if module not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"lacks {module}, which modules_to_save"):
        AhaModel.from_base(BASE, folder)
    change(folder / "adapter_config.json", modules_to_save=["response_head", "informative_head"])  # MMDuet lists modules that nobody has
    AhaModel.from_base(BASE, folder)


def test_what_the_starting_adapter_replaced_is_saved_though_it_is_not_trained(tmp_path):
    from aha.training.arguments import ModelArguments
    from aha.training.model import build_model

    heads = ["informative_head", "relevance_head", "uncertainty_head"]
    args = ModelArguments(llm_pretrained=str(BASE), lora_pretrained=str(ADAPTER), modules_to_save=heads)
    model = build_model(args, dtype=torch.float32, device=torch.device("cpu"), seed=0)
    assert not model.lm_head.weight.requires_grad
    save_adapter(model, tmp_path / "out", base=str(BASE))
    assert torch.equal(relevance(BASE, tmp_path / "out"), relevance(BASE, ADAPTER))
    args = ModelArguments(llm_pretrained=str(BASE), modules_to_save=heads)  # a new adapter replaced nothing: a small file
    model = build_model(args, dtype=torch.float32, device=torch.device("cpu"), seed=0)
    save_adapter(model, tmp_path / "new", base=str(BASE))
    assert not any("lm_head" in name for name in map_file(tmp_path / "new/adapter_model.safetensors"))
    AhaModel.from_base(BASE, tmp_path / "new")


def test_the_bias_of_lora_is_merged(copy):
    folder, tensors = copy(ADAPTER)
    generator = torch.Generator().manual_seed(0)
    kept = {k: v for k, v in tensors.items() if "lora_" not in k or any(n in k for n in ("q_proj", "k_proj", "v_proj"))}
    kept |= {k[: -len("weight")] + "bias": torch.randn(v.shape[0], generator=generator) for k, v in kept.items() if "lora_B" in k}
    save_file(kept, folder / "adapter_model.safetensors")
    change(folder / "adapter_config.json", lora_bias=True, target_modules=r"model\.layers.*(q_proj|k_proj|v_proj)$")
    assert (relevance(BASE, folder) - relevance(BASE, folder, merge=False)).abs().max() < 1e-5
    assert (relevance(BASE, folder) - relevance(BASE, ADAPTER)).abs().max() > 1e-3


def test_an_adapter_of_peft_for_all_linear_layers_loads(tmp_path):
    from peft import LoraConfig, get_peft_model

    listed = ["mm_projector", "lm_head", "informative_head", "relevance_head", "uncertainty_head"]
    theirs = get_peft_model(AhaModel.from_base(BASE), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", modules_to_save=listed))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(0.02)
    theirs.save_pretrained(tmp_path)
    inner, ours = theirs.eval().get_base_model(), AhaModel.from_base(BASE, tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(ours.decode(ours.embed_tokens(ids)), inner.decode(inner.embed_tokens(ids)), atol=1e-4)


@pytest.mark.parametrize(("settings", "named"), [
    ({"use_dora": True}, "DoRA"), ({"use_qalora": True}, "use_qalora"), ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"), ({"arrow_config": {"top_k": 1}}, "arrow_config"), ({"kasa_config": {}, "velora_config": {"a": 1}}, "velora_config"),
    ({"monteclora_config": {"a": 1}}, "monteclora_config"), ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"target_parameters": ["lm_head.weight"]}, "target_parameters"), ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"use_lora_of_next_year": True}, "use_lora_of_next_year"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
])  # fmt: skip
def test_a_variant_of_lora_that_is_not_known_is_refused_by_name(copy, settings, named):
    folder, _ = copy(ADAPTER)
    change(folder / "adapter_config.json", **settings)
    with pytest.raises(UserError, match=named):
        lora_settings(folder / "adapter_config.json")


def test_settings_of_lora_that_change_nothing_are_no_variant(copy):
    folder, _ = copy(ADAPTER)
    change(folder / "adapter_config.json", use_dora=False, qalora_group_size=16, megatron_core="megatron.core", loftq_config={}, peft_version="0.99",
           corda_config=None, ensure_weight_tying=False, use_lora_of_next_year=False, size_of_next_year=None)  # fmt: skip
    assert lora_settings(folder / "adapter_config.json").r == 16


def test_a_pickled_adapter_is_found_by_hub_id_too(tmp_path, monkeypatch):
    """Of the hub only what is needed is downloaded: the pickle where there is no safetensors file."""
    asked = []

    def download(name, allow_patterns, local_files_only=False, tqdm_class=None):
        if local_files_only:
            raise LocalEntryNotFoundError(name)
        asked.append([pattern for pattern in allow_patterns if pattern.endswith(".bin")])
        (tmp_path / "adapter_config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr("llava_next.hub.snapshot_download", download)
    assert resolve_folder("org/adapter") == tmp_path and asked == [[], ["adapter_model.bin"]]
    assert resolve_folder("org/adapter") == tmp_path and len(asked) == 2  # looked up once in a process
    (tmp_path / "adapter_model.safetensors").touch()
    assert resolve_folder("org/other") == tmp_path and asked[2:] == [[]]


def test_an_adapter_finds_its_base_from_anywhere_and_names_no_path(copy, tmp_path, monkeypatch):
    base, _ = copy(BASE)
    model = AhaModel.from_base(base, ADAPTER, merge=False)
    monkeypatch.chdir(tmp_path)
    save_adapter(model, tmp_path / "run/checkpoint-1", base=base.name, tokenizer=load_tokenizer(ADAPTER))
    monkeypatch.chdir("/")
    again = AhaModel.from_pretrained(tmp_path / "run/checkpoint-1")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert json.loads((tmp_path / "run/checkpoint-1/adapter_config.json").read_text())["base_model_name_or_path"] == base.name
    (tmp_path / "run/checkpoint-1/.base").unlink()  # as it comes from the hub: the base may lie beside it
    (tmp_path / "run/checkpoint-1").rename(tmp_path / "elsewhere")
    assert base_of(tmp_path / "elsewhere") == base
    assert portable_base("org/name") == "org/name" and portable_base("/c/models--org--name/snapshots/0a1b") == "org/name"


# ---- saving ----


def test_old_shards_never_win_over_a_new_file(tmp_path):
    model = AhaModel.from_base(BASE, ADAPTER)
    folder = tmp_path / "whole"
    for shard, factor in ((300_000, 1.0), (5 << 30, -3.0), (600_000, 0.5)):
        with torch.no_grad():
            model.relevance_head.weight.mul_(factor)
        model.save_pretrained(folder, max_shard_bytes=shard)
        assert torch.equal(AhaModel.from_pretrained(folder).relevance_head.weight, model.relevance_head.weight)
    save_llava_next(load_base(BASE), tmp_path / "base", max_shard_bytes=300_000)
    shutil.copy(BASE / "model.safetensors", tmp_path / "base")
    with pytest.raises(UserError, match="of which one is of an earlier saving"):
        load_base(tmp_path / "base")
    (tmp_path / "base/model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="was not written to the end"):
        load_base(tmp_path / "base")


def test_a_full_disk_leaves_a_sentence_and_no_folder_that_looks_whole(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    model = AhaModel.from_base(BASE, ADAPTER)
    model.save_pretrained(tmp_path / "whole")
    monkeypatch.setattr("llava_next.saving.save_file", full)
    with pytest.raises(UserError, match="cannot be written into .*No space left"):
        model.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match=r"config.json does not exist"):
        AhaModel.from_pretrained(tmp_path / "whole")


# ---- sizes, numbers, files ----


CONFIGS = {
    "a million layers": {"num_hidden_layers": 1_000_000}, "a wide decoder": {"hidden_size": 1_000_000_000}, "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 7}, "a size in words": {"intermediate_size": "many"}, "true": {"num_key_value_heads": True},
    "an unknown activation": {"hidden_act": "no_such"}, "a list": {"rms_norm_eps": [1]}, "no object": {"text_config": [1]}, "a wide MLP": {"intermediate_size": 10**9},
    "rope of another kind": {"rope_scaling": {"type": "no_such"}}, "pooling to nothing": {"pool_stride": 0}, "an id that is none": {"image_token_index": "x"},
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGS)
def test_sizes_are_those_of_the_tensors_before_anything_is_built(copy, what, monkeypatch):
    folder, _ = copy(BASE)
    change(folder / "config.json", **CONFIGS[what])
    built, make = [], torch.nn.Module.__init__
    monkeypatch.setattr(
        torch.nn.Module, "__init__", lambda self, *given, **named: (built.append(type(self)), make(self, *given, **named))[1]
    )
    with pytest.raises(UserError):
        load_base(folder)
    assert len(built) < 1000  # where the sizes are right and something else is wrong, it may begin


ADAPTERS = {
    "a high rank": {"r": 10**9}, "a pattern of ranks": {"rank_pattern": {"q_proj": 10**9}}, "a scale in words": {"lora_alpha": "x"}, "a scale": {"lora_alpha": 1e308},
    "targets that are no pattern": {"target_modules": "("}, "no targets": {"target_modules": []}, "other targets": {"target_modules": ["nothing"]},
    "no rank": {"r": 0}, "a list of a list": {"modules_to_save": [["lm_head"]]}, "dropout": {"lora_dropout": 7}, "a pattern": {"exclude_modules": "("},
}  # fmt: skip


@pytest.mark.parametrize("what", ADAPTERS)
def test_settings_of_an_adapter_that_cannot_be_are_one_sentence(copy, what):
    folder, _ = copy(ADAPTER)
    change(folder / "adapter_config.json", **ADAPTERS[what])
    with pytest.raises(UserError):
        AhaModel.from_base(BASE, folder)


def test_a_layer_of_a_great_number_is_no_reason_to_build_as_many(copy):
    folder, tensors = copy(BASE)
    save_file(tensors | {"model.layers.99999999.mlp.up_proj.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="are not numbered 0 to"):
        load_base(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside.safetensors", "", 3, "config.json"])
def test_an_index_names_files_of_its_folder_only(copy, tmp_path, name):
    folder, tensors = copy(BASE)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(UserError, match="no safetensors file of this folder|no weight_map"):
        load_base(folder)


def test_nan_is_named_by_tensor_and_what_is_too_large_for_float16_by_its_cure(copy):
    folder, tensors = copy(BASE)
    tensors["model.layers.0.input_layernorm.weight"][0] = 1e6
    save_file(tensors, folder / "model.safetensors")
    load_base(folder)
    with pytest.raises(UserError, match=r"input_layernorm.weight holds numbers up to 1e\+06, too large for float16; use bfloat16"):
        load_base(folder, dtype=torch.float16)
    tensors["model.layers.0.input_layernorm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.layers.0.input_layernorm.weight holds NaN"):
        AhaModel.from_base(folder, ADAPTER)


def test_a_merge_that_overflows_is_named():
    model = AhaModel.from_base(BASE)
    add_lora(model, new_lora())
    layer = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(1e25)
        layer.lora_B["default"].weight.fill_(1e25)
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj with the adapter's matrices holds NaN or infinite"):
        merge_adapter(model)


TOKENIZERS = {
    "a number for a token": ("tokenizer_config.json", lambda text: text.replace('"pad_token":', '"pad_token": 7, "was":')),
    "infinity for a token": ("tokenizer_config.json", lambda text: text.replace('"pad_token":', '"pad_token": Infinity, "was":')),
    "cut off": ("tokenizer.json", lambda text: text[: len(text) // 2]),
    "no JSON object": ("tokenizer.json", lambda text: "[1]"),
    "no model": ("tokenizer.json", lambda text: text.replace('"model"', '"mobel"')),
    "another kind of model": ("tokenizer.json", lambda text: text.replace('"BPE"', '"BPX"')),
}  # fmt: skip


@pytest.mark.parametrize("what", TOKENIZERS)
def test_what_tokenizers_raises_is_one_sentence_or_nothing(copy, what):
    folder, _ = copy(ADAPTER)
    name, damage = TOKENIZERS[what]
    path = folder / name
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        assert str(folder) in str(error)
    else:
        assert tokenizer.encode("a word")


def test_a_tokenizer_of_another_model_is_named(copy):
    folder, _ = copy(ADAPTER)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["added_tokens"].append({**text["added_tokens"][0], "content": "<|far|>", "id": 5_000_000})
    text["model"]["vocab"]["far"] = 4_000_000
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="has ids up to|no tokenizer could be loaded"):
        AhaModel.from_base(BASE, folder)


def test_damaged_folders_give_a_model_or_a_sentence():
    """A few of `python test/mutate_checkpoints.py --runs 300`."""
    said = []
    assert not mutate_checkpoints.run_all(12, seed=0, limit=300, say=said.append)["BAD"], "\n".join(said)
