"""A language model as judge: how correct is a predicted answer, 1 to 5, given the question and the true answer.

One interface (`Judge.ask`), three kinds: an OpenAI-compatible endpoint (`EndpointJudge`), a local transformers model
(aha.scoring.judge_local), and OpenAI batch files (`write_batch`, `read_batch`). Judgments are kept in a cache file, one JSON line each,
written as they come in: an interrupted or failing judge loses nothing that it had answered. A judgment's key covers the prompt, the judge
and the three texts; changing the prompt without raising PROMPT_VERSION is caught by a test.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aha.core.files import read_text, write_text
from aha.errors import UserError

PROMPT_VERSION = 1
SYSTEM = (
    "You grade answers to questions about videos. You see a question, the correct answer, and the answer that a system gave while it "
    "watched the video. Judge only whether the given answer says what the correct answer says; style and length do not matter, extra "
    "details that do not contradict the correct answer cost nothing. Grades:\n"
    "5 - says all that the correct answer says, and nothing that contradicts it\n"
    "4 - says nearly all of it; a detail is missing or slightly off\n"
    "3 - about half of it is right; something important is missing or wrong\n"
    "2 - a few words are right, the rest is wrong, off the point or in conflict with the correct answer\n"
    "1 - wrong, or no answer to the question\n"
    "Reply with the grade alone, one digit from 1 to 5."
)
USER = "Question: {question}\nCorrect answer: {gold}\nGiven answer: {predicted}\nGrade:"
ATTEMPTS = 5  # per pair, when the judge is busy or its connection fails
NONSENSE_ATTEMPTS = 2
NOT_ASKED = "not asked any more"


class JudgeFailure(Exception):
    """A question to the judge failed. `wait`: seconds to wait before another try, None = trying again is pointless for all pairs."""

    def __init__(self, reason: str, wait: float | None):
        super().__init__(reason)
        self.wait = wait


class Judge(Protocol):
    """`identity` names the model and where it runs (part of the cache key)."""

    identity: str

    def ask(self, system: str, user: str) -> str:
        """The model's reply. Raises JudgeFailure."""
        ...


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked, and the grades that it may give. user: with {question}, {gold} and {predicted}."""

    system: str
    user: str
    grades: tuple[int, ...]


ONE_TO_FIVE = Rubric(SYSTEM, USER, (1, 2, 3, 4, 5))


@dataclass(frozen=True)
class Pair:
    """What is judged."""

    question: str
    gold: str
    predicted: str
    rubric: Rubric = ONE_TO_FIVE

    def prompt(self) -> str:
        return self.rubric.user.format(question=self.question, gold=self.gold, predicted=self.predicted)

    def key(self, identity: str) -> str:
        """Cache key: judge, prompt and texts."""
        parts = [str(PROMPT_VERSION), self.rubric.system, self.rubric.user, identity, self.question, self.gold, self.predicted]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_grade(reply: str, grades: Sequence[int] = ONE_TO_FIVE.grades) -> int | None:
    """The grade in a reply: a leading digit ("4", "4/5", "Grade: 4"), or the only number in it; None if there is no clear one."""
    allowed = "".join(map(str, grades))
    leading = re.match(rf"\W*(?:(?:the\s+)?(?:grade|score|rating)\W*(?:is\s+)?)?([{allowed}])(?!\.?\d)", reply, re.IGNORECASE)
    if leading:
        return int(leading[1])
    numbers = set(re.findall(r"\d+(?:\.\d+)?", reply))
    return int(numbers.pop()) if len(numbers) == 1 and numbers <= set(allowed) else None


@dataclass
class JudgmentCache:
    """Grades by key, kept in a JSON Lines file. A line cut off by a crash is dropped; `add` appends and flushes."""

    path: Path
    grades: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"judgment cache {self.path} cannot be read ({error}); delete it or choose another --judge_cache.") from error
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and entry.get("grade") in (1, 2, 3, 4, 5) and isinstance(entry.get("key"), str):
                self.grades[entry["key"]] = entry["grade"]
        self.needs_newline = bool(text) and not text.endswith("\n")

    def add(self, key: str, grade: int, reply: str) -> None:
        line = json.dumps({"key": key, "grade": grade, "reply": reply[:200], "prompt_version": PROMPT_VERSION})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self.needs_newline else "") + line + "\n")
        except OSError as error:
            raise UserError(
                f"judgment cache {self.path} cannot be written ({error.strerror}); free the disk or choose another --judge_cache."
            ) from error
        self.needs_newline = False
        self.grades[key] = grade


def judge_pairs(pairs: Iterable[Pair], judge: Judge, cache: JudgmentCache, workers: int = 4) -> tuple[dict[Pair, int], int]:
    """Grades of all pairs, and how many questions were put to the judge (cached pairs cost none).

    A busy judge (429, 5xx), a broken connection or a time-out is tried 5 times with growing waits; a reply without a grade twice.
    Raises UserError if pairs remain ungraded; what was graded is in the cache by then, so that the next run asks only for the rest.
    """
    from tqdm import tqdm

    pairs = list(dict.fromkeys(pairs))
    open_pairs = [pair for pair in pairs if pair.key(judge.identity) not in cache.grades]
    asked = 0
    failures: list[str] = []
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = {pool.submit(_grade, pair, judge, stop): pair for pair in open_pairs}
        try:
            for job in tqdm(
                as_completed(jobs), total=len(jobs), desc=f"judging ({judge.identity})", unit="pair", disable=not sys.stderr.isatty()
            ):
                grade, reply, questions = job.result()
                asked += questions
                if grade is not None:
                    cache.add(jobs[job].key(judge.identity), grade, reply)
                else:
                    failures.append(reply)
        finally:
            stop.set()  # an error or Ctrl-C here ends the waits of the other workers
            pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        reason = next((failure for failure in failures if failure != NOT_ASKED), NOT_ASKED)
        raise UserError(
            f"the judge {judge.identity} left {len(failures)} of {len(pairs)} answers ungraded ({reason}); the "
            f"{len(pairs) - len(failures)} grades so far are kept in {cache.path}, run the same command again for the rest."
        )
    return {pair: cache.grades[pair.key(judge.identity)] for pair in pairs}, asked


def _grade(pair: Pair, judge: Judge, stop: threading.Event) -> tuple[int | None, str, int]:
    """(grade or None, reply or reason, questions asked)."""
    nonsense, reason = 0, NOT_ASKED
    for attempt in range(ATTEMPTS):
        if stop.is_set():
            return None, reason, attempt
        try:
            reply = judge.ask(pair.rubric.system, pair.prompt())
        except JudgeFailure as failure:
            reason = str(failure)
            if failure.wait is None:
                stop.set()
                return None, reason, attempt + 1
            if attempt + 1 < ATTEMPTS:
                stop.wait(failure.wait * 2**attempt)
            continue
        grade = read_grade(reply, pair.rubric.grades)
        if grade is not None:
            return grade, reply, attempt + 1
        nonsense, reason = nonsense + 1, f"no grade in the reply {reply[:60]!r}"
        if nonsense == NONSENSE_ATTEMPTS:
            return None, reason, attempt + 1
    return None, reason, ATTEMPTS


# ---------------------------------------------------------------- OpenAI-compatible endpoint


def setting(name: str) -> str | None:
    """A setting from the environment, else from the file `.env` in the working folder."""
    from dotenv import dotenv_values

    return os.environ.get(name) or dotenv_values(".env").get(name)


def address_of_model(url: str) -> str:
    """What of a server's address says which model answers, for the keys of caches: all of it, but of a server on this machine not the port,
    which is another one whenever it is started; there the model's name is what tells models apart."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://localhost{parts.path}" if parts.hostname in ("localhost", "127.0.0.1", "::1") else url


@dataclass
class EndpointJudge:
    """A server that speaks OpenAI's chat completions (OpenAI, vLLM, llama.cpp). `url` ends in /v1; the key is never printed or stored."""

    url: str
    model: str
    api_key: str | None = None
    timeout: float = 60.0  # seconds for one answer
    first_wait: float = 1.0  # seconds before the first new try
    max_tokens: int = 16

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        try:
            place = address_of_model(self.url)
        except ValueError:  # half an IPv6 address, say
            place = ""
        if not place.startswith(("http://", "https://")):
            raise UserError(f"{self.url} is no http(s) address; give the server's address up to /v1.")
        self.identity = f"{self.model} at {place}"

    def ask(self, system: str, user: str | list[dict[str, object]]) -> str:
        """The reply to words, or to the parts (text, image_url) of one message. Raises JudgeFailure."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(self.body(system, user)).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise JudgeFailure(f"no answer within {self.timeout:g} s", self.first_wait) from error
        except (OSError, http.client.HTTPException) as error:
            raise JudgeFailure(f"no connection to {self.url} ({error})", self.first_wait) from error
        except ValueError as error:
            raise JudgeFailure("the answer is not JSON", self.first_wait) from error
        reply = reply_of(answer)
        if reply is None:
            raise JudgeFailure(f"the answer has no choices: {json.dumps(answer)[:80]}", self.first_wait)
        return reply

    def body(self, system: str, user: str | list[dict[str, object]]) -> dict[str, object]:
        """The request: temperature 0, a few tokens."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}

    def _refusal(self, error: urllib.error.HTTPError) -> JudgeFailure:
        if error.code in (401, 403):
            return JudgeFailure(f"the server refuses the key (HTTP {error.code}); set OPENAI_API_KEY in .env", None)
        if error.code == 429 or error.code >= 500:
            asked_for = error.headers.get("Retry-After", "")
            wait = float(asked_for) if re.fullmatch(r"\d+(\.\d+)?", asked_for) else self.first_wait
            return JudgeFailure(f"the server is busy (HTTP {error.code})", min(wait, 60.0))
        return JudgeFailure(f"the server refuses the request (HTTP {error.code}: {error.read()[:120].decode('utf-8', 'replace')})", None)


def reply_of(answer: Any) -> str | None:
    """The text of a chat completion, or None where it is not one."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None


# ---------------------------------------------------------------- OpenAI batch files


def write_batch(pairs: Sequence[Pair], judge: EndpointJudge, cache: JudgmentCache, path: str | Path) -> int:
    """Write the ungraded pairs as an OpenAI batch input file (one request a line, custom_id = cache key); returns how many."""
    lines = []
    for pair in dict.fromkeys(pairs):
        key = pair.key(judge.identity)
        if key not in cache.grades:
            request = {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": judge.body(pair.rubric.system, pair.prompt()),
            }
            lines.append(json.dumps(request))
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    return len(lines)


def read_batch(path: str | Path, cache: JudgmentCache) -> tuple[int, int]:
    """Take the grades of an OpenAI batch output file into the cache: (taken, without a grade). Raises UserError naming file and line."""
    text = read_text(path, "batch output")
    taken = failed = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not valid JSON ({error.msg}); download the batch output again.") from error
        key = entry.get("custom_id") if isinstance(entry, dict) else None
        if not isinstance(key, str):
            raise UserError(f"{path}:{number} has no custom_id; this is no OpenAI batch output file.")
        response = entry.get("response")
        reply = reply_of(response.get("body")) if isinstance(response, dict) else None
        if reply is None or (grade := read_grade(reply)) is None:
            failed += 1
        elif key not in cache.grades:
            cache.add(key, grade, reply)
            taken += 1
    return taken, failed


__all__ = [
    "EndpointJudge",
    "Judge",
    "JudgeFailure",
    "JudgmentCache",
    "Pair",
    "judge_pairs",
    "read_batch",
    "read_grade",
    "setting",
    "write_batch",
]
