"""The two parts of caption evaluation that only exist as Java programs: METEOR 1.5 and the Penn Treebank tokenizer of Stanford CoreNLP.

Both ship in the package pycocoevalcap; neither is needed for CIDEr and F1. Without Java or the package the METEOR and SODA_c columns say
so, and captions are tokenised by `simple_words`, which equals the Treebank tokenizer on plain words and differs on some punctuation.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from aha.core.extras import install_line, installed
from aha.errors import UserError

METEOR_SECONDS = 120  # the longest wait for one answer of the METEOR program (loading its tables takes most of it)
PUNCTUATION = {"''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def why_no_java() -> str | None:
    """None where METEOR and the tokenizer can run, else what is missing."""
    if shutil.which("java") is None:
        return "needs Java"
    if not installed("pycocoevalcap"):
        return f"needs pycocoevalcap ({install_line('captions')})"
    return None


def _package() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations  # `why_no_java` has found it
    return Path(next(iter(spec.submodule_search_locations)))


def simple_words(caption: str) -> list[str]:
    """Lower-case words without punctuation; contractions split as the Treebank does ("don't" -> do, n't; "it's" -> it, 's)."""
    text = re.sub(r"n't\b", " n't", caption.lower().replace("’", "'"))
    return re.findall(r"n't|'[a-z]+|[\w-]*\w", re.sub(r"(?<=\w)'(s|re|ve|ll|d|m)\b", r" '\1", text))


def treebank_words(captions: Sequence[str]) -> list[list[str]]:
    """Tokenise captions with the Treebank tokenizer (lower case, punctuation removed), one call for all."""
    if not captions:
        return []
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # every kind of line end within a caption would shift all captions after it
    text = "\n".join(" ".join(caption.split()) for caption in captions)
    try:
        run = subprocess.run(command, input=text.encode(), capture_output=True, timeout=METEOR_SECONDS + len(captions) / 100, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"the Treebank tokenizer ({jar}) failed ({error}); check the Java installation, or evaluate with --no_java."
        ) from error
    lines = run.stdout.decode("utf-8", "replace").split("\n")
    if len(lines) < len(captions):
        raise UserError(f"the Treebank tokenizer gave {len(lines)} lines for {len(captions)} captions; evaluate with --no_java.")
    return [[word for word in line.split() if word not in PUNCTUATION] for line in lines[: len(captions)]]


class Meteor:
    """METEOR 1.5 as a running Java program; use as a context manager.

    The program's own aggregate of several pairs is not the mean of their scores: `corpus` gives the former, `single` the latter's parts.
    """

    def __enter__(self) -> Meteor:
        folder = _package() / "meteor"
        command = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self.program = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            assert self.program.stdin is not None and self.program.stdout is not None  # as asked for
            self.asks, self.answers = self.program.stdin, self.program.stdout
        except OSError as error:
            raise UserError(f"METEOR cannot be started ({error}); check the Java installation, or evaluate with --no_java.") from error
        self.statistics: dict[tuple[str, str], str] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.wait()
        self.asks.close()
        self.answers.close()

    def _ask(self, line: str, answers: int = 1) -> list[str]:
        watchdog = threading.Timer(METEOR_SECONDS, self.program.kill)  # a read that never returns would hang the evaluation
        watchdog.start()
        try:
            self.asks.write(line + "\n")
            self.asks.flush()
            lines = [self.answers.readline().strip() for _ in range(answers)]
        except OSError as error:
            raise UserError(f"METEOR stopped ({error}); it needs 2 GiB of memory, or evaluate with --no_java.") from error
        finally:
            watchdog.cancel()
        if not all(lines):
            raise UserError("METEOR stopped without an answer; it needs Java 8 or later and 2 GiB of memory, or evaluate with --no_java.")
        return lines

    def _statistics(self, candidate: Sequence[str], reference: Sequence[str]) -> str:
        pair = (" ".join(candidate), " ".join(reference))
        if pair not in self.statistics:
            self.statistics[pair] = self._ask(" ||| ".join(("SCORE", pair[1], pair[0])))[0]
        return self.statistics[pair]

    def corpus(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> tuple[float, list[float]]:
        """(the program's aggregate, each pair's score) of (candidate, reference) word lists; (0, []) without pairs."""
        if not pairs:
            return 0.0, []
        statistics = [self._statistics(*pair) for pair in pairs]
        *singles, aggregate = self._ask(" ||| ".join(["EVAL", *statistics]), len(pairs) + 1)
        return float(aggregate), [float(single) for single in singles]
