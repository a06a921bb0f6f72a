"""Settings of the model with heads, saved as config.json beside its weights."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

from llava_next import LlavaNextConfig

from aha.core.heads import HEADS

if TYPE_CHECKING:
    Base = LlavaNextConfig  # what HeadSettings is mixed into is a base's configuration
else:
    Base = object  # each family names its own


class HeadSettings(Base):
    """What is added to a base's configuration: `heads`, name -> number of outputs, of the heads that there are (default: all, as Aha has
    them). Folders of earlier versions have `relevance_outputs` and `uncertainty` instead and are read too."""

    heads: dict[str, int]

    def __post_init__(self, **kwargs: Any) -> None:
        relevance, uncertainty = kwargs.pop("relevance_outputs", None), kwargs.pop("uncertainty", True)
        if not self.heads and relevance is None:
            self.heads = {head.name: head.outputs[0] for head in HEADS}
        elif not self.heads:
            self.heads = {"informative": 2, "relevance": relevance, **({"uncertainty": 1} if uncertainty else {})}
        super().__post_init__(**kwargs)

    @property
    def family(self) -> str:
        """ "mmduet": two classes of relevance, "aha": a number."""
        return "mmduet" if self.heads["relevance"] == 2 else "aha"


class AhaConfig(HeadSettings, LlavaNextConfig):
    """The heads on the LLaVA-OneVision base."""

    model_type = "aha"

    heads: dict[str, int] = field(default_factory=dict)
