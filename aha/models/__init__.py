"""The model: heads on the base, losses, adapters (MMDuet, Aha, ours), save and load.

model.py         AhaModel: the base with heads; config.py: which heads it has
losses.py        Aha's and MMDuet's objectives, part by part
adapters.py      LoRA adapters in the published layout: load, merge, save; lora_settings.py: which adapters are understood
folders.py       which kind of folder a model lies in; whole models: load, save
quantized.py     the decoder's weights in 8 or 4 bits
"""

from aha.models.config import AhaConfig
from aha.models.losses import LossWeights, aha_losses, mmduet_losses
from aha.models.model import AhaModel, AhaOutput, FrameScores

__all__ = ["AhaConfig", "AhaModel", "AhaOutput", "FrameScores", "LossWeights", "aha_losses", "mmduet_losses"]
