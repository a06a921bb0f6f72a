"""The heads on the base model, losses, adapters (MMDuet, Aha), save and load."""

from aha.models.config import AhaConfig
from aha.models.losses import LossWeights, aha_losses, mmduet_losses
from aha.models.model import AhaModel, AhaOutput, FrameScores

__all__ = ["AhaConfig", "AhaModel", "AhaOutput", "FrameScores", "LossWeights", "aha_losses", "mmduet_losses"]
