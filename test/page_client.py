"""The page of `aha demo` as a program sees it: one tab, with its uploads, its Start and the answers to it."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="gradio is not installed")

API = "/gradio_api"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Tab:
    """One session, without a heartbeat. Methods give what the server answers."""

    def __init__(self, address: str, **headers: str):
        self.http = httpx.Client(
            base_url=address, headers=headers, timeout=60, verify=False
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
        return [{"path": path, "meta": {"_type": "gradio.FileData"}}, query, 15, 0, 1, 0, 0, 6, 20]

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
