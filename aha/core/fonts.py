"""Text in any script in pictures (titles burned into a reel, the timeline): which font of this machine has which characters.

`readable(text)` gives the text as it can be shown and the fonts that have its characters; characters that no font has are left out, and a
sentence on standard error says so once, instead of boxes that look alike for every text.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from aha.core.checked import writable

_PREFERRED = ("dejavusans.", "notosans-regular", "notosanscjk", "liberationsans-regular", "unifont", "arial", "segoeui")
_said: set[str] = set()


@dataclass(frozen=True)
class Font:
    """A font file and the characters that it can show."""

    path: str
    characters: frozenset[int]


def font_paths() -> list[str]:
    """Matplotlib's own font (DejaVu Sans, always there), then those of the machine, upright ones with few surprises first."""
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans", fallback_to_default=True)
    return [own, *sorted(set(font_manager.findSystemFonts()) - {own}, key=_order)]


def _order(path: str) -> tuple[bool, int, str]:
    name = path.replace("\\", "/").rsplit("/", 1)[-1].lower()
    styled = any(word in name for word in ("bold", "italic", "oblique", "mono", "condensed", "narrow", "light", "black", "thin"))
    rank = next((i for i, preferred in enumerate(_PREFERRED) if name.startswith(preferred)), len(_PREFERRED))
    return styled, rank, path


@functools.lru_cache(maxsize=512)
def _font(path: str) -> Font | None:
    """None for a font that cannot be drawn in any size (bitmaps of emoji) or is damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return Font(path, frozenset(font.get_charmap())) if font.scalable else None
    except (OSError, RuntimeError, ValueError, UnicodeError):
        return None


def readable(text: str) -> tuple[str, list[str]]:
    """(the text without what no font of this machine can show, paths of the fonts to draw it with, the first one first)."""
    text = "".join(c for c in writable(text) if not unicodedata.category(c).startswith("C") or c in "\u200c\u200d")
    wanted = {ord(c) for c in text if not c.isspace() and c not in "\u200c\u200d\ufe0e\ufe0f"}
    paths = font_paths()
    chain: list[str] = []
    missing = set(wanted)
    # One font for all of it keeps letters joined; else each font gives what those before it lack.
    whole = next((path for path in paths if (font := _font(path)) is not None and wanted <= font.characters), None)
    for path in [whole] if whole else paths:
        font = _font(path)
        if font is not None and missing & font.characters:
            chain.append(path)
            missing -= font.characters
    if missing:
        text = " ".join("".join(c for c in text if ord(c) not in missing).split())
        _say(missing)
    return text, chain or paths[:1]


def readable_families(text: str) -> tuple[str, list[str]]:
    """`readable` for text that matplotlib draws: (the text, names of the font families, which matplotlib knows from now on)."""
    from matplotlib import font_manager

    shown, paths = readable(text)
    for path in paths:
        font_manager.fontManager.addfont(path)
    return shown, [font_manager.get_font(path).family_name for path in paths]


def runs(text: str, paths: Sequence[str]) -> list[tuple[str, str]]:
    """[(piece of text, font path)]: each character with the first of the fonts that has it; marks stay with their letter."""
    chosen = [font for path in paths if (font := _font(path)) is not None]
    pieces: list[tuple[str, str]] = []
    for c in text:
        joins = c.isspace() or unicodedata.combining(c) or c in "\u200c\u200d\ufe0e\ufe0f"
        path = next((font.path for font in chosen if ord(c) in font.characters), paths[0])
        if pieces and (joins or pieces[-1][1] == path):
            pieces[-1] = (pieces[-1][0] + c, pieces[-1][1])
        else:
            pieces.append((c, path))
    return pieces


def _say(missing: set[int]) -> None:
    shown = "".join(chr(code) for code in sorted(missing)[:12])
    if shown not in _said:
        _said.add(shown)
        print(
            f"note: no font of this machine has the characters {shown}, so they are left out of the pictures; install a font that has them "
            "(for example the Noto fonts: apt-get install fonts-noto-cjk fonts-noto-core).",
            file=sys.stderr,
        )
