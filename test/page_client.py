"""The page of `aha demo` as a program sees it: one tab, with its uploads, its Start and the answers to it; and as a browser shows it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from waiting import LONG, wait_for

httpx = pytest.importorskip("httpx", reason="gradio is not installed")

API = "/gradio_api"
SLIDERS = [15, 0, 1, 0, 0, 6, 20, True, 0]  # share, alpha, beta, epsilon, threshold, information, change, force, which query is shown
SPEAKING = [0, 0, ["informative"], False, 2]  # threshold, sum, heads, forget, frames a second


class Page:
    """What a browser shows. The page draws its parts anew whenever it likes, and a busy machine lets time pass between finding a part and
    using it: so nothing here keeps an element. What is read is read by one script; what is done is done again on the part as found anew."""

    def __init__(self, browser: Any):
        self.browser = browser

    def open(self, address: str, selector: str = "#aha-start") -> None:
        self.browser.get(address)
        self.wait(selector)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def read(self, selector: str, what: str = "innerText") -> Any:
        """A property of the first element, None where there is no such element now."""
        return self.script("return document.querySelector(arguments[0])?.[arguments[1]] ?? null", selector, what)

    def wait(self, selector: str, seconds: float = 60.0) -> None:
        wait_for(lambda: self.script("return document.querySelector(arguments[0]) !== null", selector), seconds)

    def text(self) -> str:
        return self.read("body") or ""

    def value(self, selector: str) -> str:
        return self.read(selector, "value") or ""

    def click(self, selector: str) -> None:
        """A click of the mouse; where a message lies over the element, one by a script."""
        from selenium.common.exceptions import (
            ElementClickInterceptedException,
            ElementNotInteractableException,
            StaleElementReferenceException,
        )

        def clicked() -> bool:
            try:
                found = self.browser.find_elements("css selector", selector)
                if found:
                    found[0].click()
                return bool(found)
            except StaleElementReferenceException:
                return False
            except (ElementClickInterceptedException, ElementNotInteractableException):
                return self.script("const e = document.querySelector(arguments[0]); e?.click(); return e !== null", selector)

        wait_for(clicked)

    def send(self, selector: str, *keys: str) -> None:
        """Keys, or the path of a file for an input of files."""
        from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException

        def sent() -> bool:
            try:
                found = self.browser.find_elements("css selector", selector)
                if found:
                    found[0].send_keys(*keys)
                return bool(found)
            except (StaleElementReferenceException, ElementNotInteractableException):
                return False

        wait_for(sent)

    def fill(self, selector: str, text: str, end: str = "") -> None:
        """Type into a field in place of what it holds; `end`: keys after it."""
        from selenium.webdriver import Keys

        def filled() -> bool:
            self.send(selector, Keys.CONTROL + "a")
            self.send(selector, text)
            return self.value(selector) == text

        wait_for(filled)
        if end:
            self.send(selector, end)


class Tab:
    """One session, without a heartbeat. Methods give what the server answers."""

    def __init__(self, address: str, **headers: str):
        self.http = httpx.Client(
            base_url=address, headers=headers, timeout=LONG, verify=False
        )  # reading certificates takes longer than all else
        self.session = uuid.uuid4().hex[:12]

    def upload(self, contents: bytes, name: str = "clip.mp4") -> httpx.Response:
        return self.http.post(f"{API}/upload", files={"files": (name, contents, "video/mp4")})

    def function(self, elem_id: str) -> int:
        """Number of the function that a click on this element calls."""
        config = self.http.get("/config").json()
        number = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == elem_id)
        return next(entry["id"] for entry in config["dependencies"] if [number, "click"] in [list(target) for target in entry["targets"]])

    def join(self, function: int, data: list[Any]) -> httpx.Response:
        return self.http.post(f"{API}/queue/join", json={"fn_index": function, "data": data, "session_hash": self.session})

    def ended(self, count: int = 1) -> list[dict[str, Any]]:
        """The outputs of this session's next events that end: {"data": ...} or {"error": ...}."""
        found: list[dict[str, Any]] = []
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as answer:
            for line in answer.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    found.append(message["output"])
                if len(found) == count:
                    break
        return found

    def start_data(self, path: str, query: str = "a red star") -> list[Any]:
        return [{"path": path, "meta": {"_type": "gradio.FileData"}}, query, *SLIDERS, *SPEAKING]

    def start(self, path: str, query: str = "a red star") -> dict[str, Any]:
        answer = self.join(self.function("aha-start"), self.start_data(path, query))
        if answer.status_code != 200:
            return {"error": answer.text}
        return self.ended()[0]

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.close()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
