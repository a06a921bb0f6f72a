"""Which LoRA adapters are understood: the settings of adapter_config.json, checked by name and value.

What is not understood is refused: a variant of LoRA that is loaded as plain LoRA gives other scores without a word.
"""

from __future__ import annotations

from pathlib import Path

from llava_next import UNUSABLE, CheckpointError, first_line, read_json
from peft import LoraConfig


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


# The settings of LoRA that are understood here, and what their values may be. Of all others PEFT's own default is accepted.
UNDERSTOOD = {
    "r": is_rank,
    "lora_alpha": is_number,
    "lora_dropout": lambda value: is_number(value) and 0 <= value < 1,
    "target_modules": lambda value: (isinstance(value, str) and bool(value)) or is_names(value),
    "exclude_modules": lambda value: isinstance(value, str) or is_names(value),
    "modules_to_save": is_names,
    "layers_to_transform": lambda value: is_rank(value) or value == 0 or isinstance(value, list),
    "layers_pattern": lambda value: isinstance(value, str) or is_names(value) or value == [],
    "rank_pattern": lambda value: isinstance(value, dict) and all(map(is_rank, value.values())),
    "alpha_pattern": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "bias": lambda value: value in ("none", "lora_only", "all"),
    "use_rslora": lambda value: isinstance(value, bool),
    "lora_bias": lambda value: isinstance(value, bool),
    "fan_in_fan_out": lambda value: value is False,
    "init_lora_weights": lambda value: isinstance(value, bool | str),
    "base_model_name_or_path": lambda value: isinstance(value, str),
    "revision": lambda value: isinstance(value, str),
    "task_type": lambda value: isinstance(value, str),
}
# Say how training started or which software it was: they change no value of a finished adapter.
NO_MATTER = {"peft_type", "auto_mapping", "peft_version", "inference_mode", "megatron_config", "megatron_core", "loftq_config",
             "eva_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"}  # fmt: skip


def lora_settings(path: Path) -> LoraConfig:
    """LoRA settings of an adapter_config.json. Raises CheckpointError for another kind of adapter, for every variant of LoRA that is not
    understood here (by the name of its setting) and for values that cannot be."""
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} is of type {settings.get('peft_type')}; only LORA adapters can be loaded.")
    if settings.get("use_dora"):
        raise CheckpointError(f"{path} is a DoRA adapter; only plain LoRA adapters can be loaded.")
    settings = {name: value for name, value in settings.items() if value is not None}
    known = LoraConfig.__dataclass_fields__
    for name, value in settings.items():
        if name in NO_MATTER:
            continue
        if name in UNDERSTOOD:
            if not UNDERSTOOD[name](value):
                raise CheckpointError(f"{path}: {name} is {str(value)[:80]}, which cannot be; download the adapter again.")
        elif value not in (False, {}, []) and (name not in known or value != known[name].default):
            raise CheckpointError(f"{path} sets {name}, a variant of LoRA that cannot be loaded; only plain LoRA adapters can.")
    try:
        lora = LoraConfig(**{name: value for name, value in settings.items() if name in UNDERSTOOD})
    except UNUSABLE as error:
        raise CheckpointError(f"{path} has settings that cannot be used ({first_line(error)}); download the adapter again.") from error
    return lora
