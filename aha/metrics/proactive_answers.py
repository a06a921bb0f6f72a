"""How a reply is read as an answer: the rules of the repositories that score OVO-Bench and StreamingBench, each under its name.

A rule that finds no answer says None. A mark is 1.0 or 0.0. `None` as a reply: the model was asked and said nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

LETTERS = "ABCDE"
FORWARD = ("REC", "SSR", "CRR")

# ---------------------------------------------------------------- StreamingBench, multiple choice

PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is", "The correct option is",
    "Best answer:", "Best option:",
)  # fmt: skip


def first_character(reply: str) -> str | None:
    """StreamingBench's count.py: the first character, as it is (there an empty reply ends the program)."""
    return reply[:1] or None


def after_prefixes(reply: str) -> str | None:
    """TimeChat-Online: announcing phrases taken out, then the first capital A to D anywhere ("Because" is B)."""
    for prefix in PREFIXES:
        reply = reply.replace(prefix, "")
    return _first(r"[A-D]", reply)


def whole_word(reply: str) -> str | None:
    """SimpleStream: of the upper-cased reply the first lone A to D, else the first lone 1 to 4 ("A cat" is A)."""
    letter = _first(r"\b([A-D])\b", reply.upper())
    digit = _first(r"\b([1-4])\b", reply) if letter is None else None
    return letter or (LETTERS[int(digit) - 1] if digit else None)


def normalised(reply: str) -> str | None:
    """VLMEvalKit: the letter that is announced, leads, or stands alone; digits are no letters."""
    return pattern_letter(reply, LETTERS[:4])


MCQ_RULES: dict[str, Callable[[str], str | None]] = {
    "first_character": first_character, "after_prefixes": after_prefixes, "whole_word": whole_word, "normalised": normalised,
}  # fmt: skip


def pattern_letter(reply: str, letters: str, options: Sequence[str] = ()) -> str | None:
    """VideoChat3's VLMEvalKit, case ignored: the whole reply; a leading letter before . : - ); one after "answer" or "option" (without a
    word boundary: "answer depends" is D); a lone letter; else the longest option whose text the reply holds."""
    shown, one = reply.strip(), f"[{letters}]"
    for pattern in (
        rf"^\(?({one})\)?[.]?$",
        rf"^\(?({one})\s*[.:\-)]",
        rf"(?:answer|option)\s*(?:is)?\s*:?\s*\(?({one})",
        rf"\b({one})\b",
    ):
        if letter := _first(pattern, shown, re.IGNORECASE):
            return letter.upper()
    held = [(len(text), -i) for i, text in enumerate(options) if text and text.lower() in shown.lower()]
    return letters[-max(held)[1]] if held else None


def _first(pattern: str, text: str, flags: int = 0) -> str | None:
    found = re.search(pattern, text, flags)
    return found[found.lastindex or 0] if found else None


# ---------------------------------------------------------------- OVO-Bench

# A mark of one reply. truth: the letter (backward, real time), the count (REC), or 0 / 1 (SSR, CRR).


def official(task: str, truth: Any, reply: str | None, options: Sequence[str] = ()) -> float:
    """OVO-Bench's score.py. The true letter anywhere; REC: all digits joined; SSR, CRR: "N" or "Y" alone, "No" or "Yes" anywhere."""
    if reply is None:
        return 0.0
    if task == "REC":
        return float("".join(re.findall(r"[0-9]", reply)) == str(truth))
    if task in FORWARD:
        short, word = ("Y", "Yes") if int(truth) == 1 else ("N", "No")
        return float(reply == short or word in reply)
    return float(str(truth) in reply)


def word(task: str, truth: Any, reply: str | None, options: Sequence[str] = ()) -> float:
    """SimpleStream's inference script: letters as `whole_word`; of the upper-cased reply N or Y alone, NO or YES anywhere ("know")."""
    if not reply:
        return 0.0
    if task == "REC":
        return official(task, truth, reply)
    if task in FORWARD:
        short, whole = ("Y", "YES") if int(truth) == 1 else ("N", "NO")
        return float(reply.upper() == short or whole in reply.upper())
    return float(whole_word(reply) == truth)


def patterns(task: str, truth: Any, reply: str | None, options: Sequence[str] = ()) -> float:
    """VideoChat3's VLMEvalKit: letters among the row's own (`pattern_letter`); REC: exactly one whole number; "no" or "yes" anywhere."""
    if reply is None:
        return 0.0
    if task == "REC":
        numbers = re.findall(r"[0-9]+", reply)
        return float(len(numbers) == 1 and int(numbers[0]) == int(truth))
    if task in FORWARD:
        return float(("yes" if int(truth) == 1 else "no") in reply.lower())
    return float(pattern_letter(reply, LETTERS[: len(options)] or LETTERS, options) == truth)


OVO_RULES = {"official": official, "word": word, "patterns": patterns}
