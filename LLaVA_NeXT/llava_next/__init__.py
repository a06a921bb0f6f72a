"""The LLaVA-OneVision / Qwen2 video-language model that Aha! builds on. It knows nothing of heads, streams or highlights."""

from llava_next.checkpoint import CheckpointError, load_base, resolve_folder, save_llava_next
from llava_next.config import LlavaNextConfig
from llava_next.model import TOWER_BATCH, LlavaNextForCausalLM, pick_attention

__all__ = [
    "TOWER_BATCH", "CheckpointError", "LlavaNextConfig", "LlavaNextForCausalLM", "load_base", "pick_attention", "resolve_folder",
    "save_llava_next",
]  # fmt: skip
