"""The demo's language: queries and captions about the generated pictures, and a small tokenizer in Qwen2's format trained on them.

The queries that the base is pretrained on are worded differently from the titles of the data set (`aha.demo.dataset.TITLES`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from aha.conversation import DEFAULT_SYSTEM_PROMPT
from aha.core.files import write_json, write_text
from aha.demo.dataset import TITLES, Target, fill_title
from aha.demo.scenes import COLOURS, PATTERNS, PLACES, Scene, Thing

NAMES = {
    frozenset({"colour"}): (
        "{colour}", "{colour} thing", "{colour} things", "something {colour}", "the colour {colour}", "anything {colour}", "{colour} ones",
    ),
    frozenset({"pattern"}): (
        "{pattern}", "{pattern} thing", "{pattern} things", "something {pattern}", "{pattern} objects", "{pattern} ones",
        "anything {pattern}",
    ),
    frozenset({"place"}): ("{place}", "the {place}", "on the {place}", "at the {place}", "{place} pictures", "things on the {place}"),
    frozenset({"colour", "pattern"}): (
        "{pattern} {colour} thing", "{pattern} {colour} things", "something {pattern} and {colour}", "something {colour} and {pattern}",
        "the {pattern} {colour} one", "a {colour} {pattern} thing", "{pattern} and {colour}", "{pattern} {colour} objects",
    ),
}  # fmt: skip
REQUESTS = (
    "{name}", "{Name}", "{Name}!", "{Name}?", "show me {name}", "Show {name}, please", "tell me when you see {name}",
    "when is there {name}?", "find {name} in the video", "Is it {name} now?", "I want to see {name}", "{Name} in front of us",
    "watch out for {name}", "only {name}", "please point at {name}", "do you see {name}?", "{Name}: say when", "what about {name}?",
    "wait for {name}", "I am here for {name}",
)  # fmt: skip
# Words with no meaning in this world, so that the model learns to pass over the rest of a title.
_SMALL_TALK = """
    the a an and or of in on at to for with from by about into over after before during between all every each some any more most
    best good great new old first last next long short little big whole one two three many few my your our their we they you it
    this that these those what where when why how who is are was were be has have had do does did can could will would should may
    let make made get go went come see saw look looking looks find finding found show shows watch watching keep keeps move moves
    moving play playing walk walking run running work working talk life day days week month year years time times minute minutes
    hour morning evening today home house city garden park school kitchen world room shop place places way ways part parts top
    list collection compilation review guide story stories tour trip video videos film clip clips scene scenes picture pictures
    thing things object objects stuff item ones favourite fashion so back around again always never only just very really here
    there everywhere inside outside everything spot chasing happy funny easy quick simple daily weekly live people friends family
    kids dog cat car bike tyre bread game music news love remember then something
"""
SMALL_TALK = tuple(_SMALL_TALK.split())


def name_of(target: Target, random: np.random.Generator) -> str:
    """One way to name what a query asks for."""
    words = target.words()
    return str(random.choice(NAMES[frozenset(words)])).format(**words)


def small_talk(random: np.random.Generator, most: int = 5) -> str:
    return " ".join(random.choice(SMALL_TALK, int(random.integers(1, most + 1))))


def query_for(target: Target, random: np.random.Generator) -> str:
    """A user's query that asks for `target`: a plain request, or its name among words without meaning, as titles have them."""
    name = name_of(target, random)
    if random.uniform() < 0.4:
        return str(random.choice(REQUESTS)).format(name=name, Name=capitalised(name))
    parts = [name]
    if random.uniform() < 0.7:
        parts.insert(0, small_talk(random))
    if random.uniform() < 0.6:
        parts.append(small_talk(random) + str(random.choice(["", "", "?", "!", "."])))
    text = str(random.choice([" ", " ", " ", ", ", ": "])).join(parts) if len(parts) > 1 else parts[0]
    return capitalised(text) if random.uniform() < 0.7 else text


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def caption_of(scene: Scene) -> str:
    """What there is to see: `a plain red thing and a dotted blue thing on sand`."""
    return (" and ".join(f"a {t.pattern} {t.colour} thing" for t in scene.things) or "nothing") + f" on {scene.place}"


def corpus(random: np.random.Generator, lines: int = 6000) -> Iterator[str]:
    """Text to train the tokenizer on."""
    for _ in range(lines // 100):
        yield f"system\n{DEFAULT_SYSTEM_PROMPT}"
        yield "user\nassistant\nstream\nnothing"
        yield " ".join(["", *SMALL_TALK])
        yield from (capitalised(word) for word in SMALL_TALK)
        for word in (*COLOURS, *PATTERNS, *PLACES):
            yield from (word, word.capitalize(), f" {word}")
    for _ in range(lines):
        target = random_target(random)
        yield query_for(target, random)
        category = str(random.choice(list(TITLES)))
        full = Target(str(random.choice(list(COLOURS))), str(random.choice(PATTERNS)), str(random.choice(PLACES)))
        yield fill_title(str(random.choice(TITLES[category])), full)
        yield f"a {full.pattern} {full.colour} thing and a {full.pattern} {full.colour} thing on {full.place}"


def random_target(random: np.random.Generator, thing: Thing | None = None, place: str | None = None) -> Target:
    """One or two words to ask for, those of `thing` and `place` if given."""
    kinds = list(NAMES)
    kind = kinds[int(random.choice(len(kinds), p=[0.25, 0.25, 0.2, 0.3]))]
    source = {
        "colour": thing.colour if thing else str(random.choice(list(COLOURS))),
        "pattern": thing.pattern if thing else str(random.choice(PATTERNS)),
        "place": place or str(random.choice(PLACES)),
    }
    return Target(**{key: source[key] for key in kind})


# Qwen2's way of cutting text into words before byte pairs are merged.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_tokenizer(seed: int, size: int) -> Tokenizer:
    """Byte-level BPE of `size` entries followed by Qwen2's three control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(corpus(np.random.default_rng([seed, 10])), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, image_token: bool) -> None:
    """Write the files of a Qwen2 tokenizer: tokenizer.json, vocab.json, merges.txt, tokenizer_config.json, added_tokens.json,
    special_tokens_map.json. With `image_token` the placeholder `<image>` is a special token as well, as in published adapters."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if image_token:
        copy.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    content = json.loads(copy.to_str())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "vocab.json", content["model"]["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(folder / "added_tokens.json", added)
    more = {"additional_special_tokens": ["<image>"]} if image_token else {}
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>", **more}
    write_json(folder / "special_tokens_map.json", names)
    decoder = {
        str(token["id"]): {key: token[key] for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
        for token in content["added_tokens"]
    }
    write_json(
        folder / "tokenizer_config.json",
        {"added_tokens_decoder": decoder, **names, "clean_up_tokenization_spaces": False, "model_max_length": 32768,
         "padding_side": "right", "tokenizer_class": "Qwen2Tokenizer"},
    )  # fmt: skip
