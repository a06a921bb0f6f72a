"""A hub on 127.0.0.1 that the real huggingface_hub client talks to: model repositories out of folders, as the public hub serves them.

    with Hub({"org/name": folder}) as hub:
        ...  # HF_ENDPOINT=hub.address

It can cut a download in the middle (`cut`), ask for a login (`gated`), and notes what was asked for (`asked`). It says of a
file that it is larger than it is where `claimed` holds its name. What is pushed to it lies in
`pushed` ({org/name: {file: bytes}}).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class Hub:
    """repositories: {org/name: folder}. cut: {file name: [bytes after which the connection breaks, how often it does]}."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories, self.cut, self.gated = repositories, {}, set()
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.sent: dict[str, int] = {}  # bytes of each "org/name/file"
        self.claimed: dict[str, int] = {}  # file name: bytes
        self.pushed: dict[str, dict[str, bytes]] = {}

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def listing(self, folder: Path) -> list[dict]:
        files = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            entry = {"type": "file", "path": str(path.relative_to(folder)), "size": len(data),
                     "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}  # fmt: skip
            if path.suffix == ".safetensors":
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            files.append(entry)
        return files


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        """A repository is made, its files are announced and come in one commit, each as a whole."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if self.path.startswith("/api/repos/create"):
            made = json.loads(body)
            answer = {"url": f"{self.hub.address}/{made.get('organization', 'somebody')}/{made['name']}"}
        elif self.path.startswith("/api/validate-yaml"):
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]}
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            self.hub.pushed.setdefault(name, {}).update(files)
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}"}
        self.command = "GET"  # `send` writes the body
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    def answer(self) -> None:
        path = self.path.split("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        found = re.match(r"(?:/api/models)?/([\w.-]+/[\w.-]+)(/.*)?$", path)
        name, rest = (found[1], found[2] or "") if found else ("", "")
        folder = self.hub.repositories.get(name)
        if folder is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name in self.hub.gated and rest.startswith("/resolve"):
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."})
        elif path.startswith("/api/") and rest.startswith("/tree"):
            self.send(200, json.dumps(self.hub.listing(folder)).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/"):
            about = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                     "siblings": [{"rfilename": entry["path"]} for entry in self.hub.listing(folder)]}  # fmt: skip
            self.send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        else:
            self.file(name, rest.split("/", 3)[3])

    def file(self, repository: str, name: str) -> None:
        folder = self.hub.repositories[repository]
        entry = next((entry for entry in self.hub.listing(folder) if entry["path"] == name), None)
        if entry is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = (folder / name).read_bytes()
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.hub.claimed:
            headers["X-Linked-Size"] = str(self.hub.claimed[name])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body, cut = data[start:], None
        if self.command == "GET" and (breaks := self.hub.cut.get(name)) and breaks[1] > 0:
            cut, breaks[1] = breaks[0], breaks[1] - 1
        if self.command == "GET":
            sent = len(body) if cut is None else min(cut, len(body))
            self.hub.sent[f"{repository}/{name}"] = self.hub.sent.get(f"{repository}/{name}", 0) + sent
        self.send(206 if start else 200, body, headers, cut)
