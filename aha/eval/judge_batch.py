"""Sends a judge's batch file, waits for it and fetches the answers (OpenAI's files and batches, also spoken by vLLM's and others' servers).

What was sent stands in `sent.json` beside the batch file, so that a killed or impatient run goes on with the batch it has paid for.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from aha.core.files import read_json, write_json, write_text
from aha.errors import UserError
from aha.eval.judge import EndpointJudge

OPEN = ("validating", "in_progress", "finalizing", "cancelling")


def send_and_fetch(judge: EndpointJudge, folder: Path, wait: float, poll: float = 20.0) -> Path:
    """Send `folder`/input.jsonl (or take up the batch already sent), wait at most `wait` seconds, and save its answers; returns their file.

    Raises UserError where the server refuses, the batch failed, or it is still under way (then the same command goes on with it).
    """
    sent = folder / "sent.json"
    if not sent.exists():
        file_id = _upload(judge, folder / "input.jsonl")
        request = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        write_json(sent, {"batch": _ask(judge, "/batches", request)["id"], "judge": judge.identity})
    state = read_json(sent, "record of the sent batch")
    if not isinstance(state, dict) or state.get("judge") != judge.identity or not isinstance(state.get("batch"), str):
        raise UserError(f"{sent} is of another judge; fetch that batch with its own flags first, or give another --batch_dir.")
    end = time.monotonic() + wait
    while (batch := _ask(judge, f"/batches/{state['batch']}"))["status"] in OPEN:
        if time.monotonic() + poll > end:
            counts = batch.get("request_counts") or {}
            done = f"{counts.get('completed', 0)} of {counts.get('total', '?')} answers are there"
            raise UserError(f"batch {state['batch']} is {batch['status']} ({done}); the same command, run later, goes on from here.")
        time.sleep(poll)
    output = folder / f"output-{state['batch']}.jsonl"
    if batch.get("output_file_id"):
        write_text(output, _text(judge, f"/files/{batch['output_file_id']}/content"))
    sent.unlink()
    if not output.exists():
        reasons = "; ".join(str(error.get("message", error)) for error in (batch.get("errors") or {}).get("data", [])[:3])
        raise UserError(f"batch {state['batch']} is {batch['status']} without an answer ({reasons or 'no reason given'}); check the model.")
    return output


def _upload(judge: EndpointJudge, path: Path) -> str:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\n'
    head += f'Content-Disposition: form-data; name="file"; filename="{path.name}"\r\nContent-Type: application/jsonl\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return _object(judge, "/files", body, f"multipart/form-data; boundary={boundary}")["id"]


def _ask(judge: EndpointJudge, path: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    return _object(judge, path, None if request is None else json.dumps(request).encode(), "application/json")


def _object(judge: EndpointJudge, path: str, body: bytes | None, content_type: str) -> dict[str, Any]:
    try:
        answer = json.loads(_text(judge, path, body, content_type))
    except ValueError as error:
        raise UserError(f"{judge.url}{path} answers no JSON; does this server have batches? Use --judge endpoint.") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
        raise UserError(f"{judge.url}{path} answers without an id; does this server have batches? Use --judge endpoint.")
    return answer


def _text(judge: EndpointJudge, path: str, body: bytes | None = None, content_type: str = "application/json") -> str:
    headers = {"Content-Type": content_type} | ({"Authorization": f"Bearer {judge.api_key}"} if judge.api_key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(judge.url + path, body, headers), timeout=judge.timeout) as response:
            return response.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        hint = "set OPENAI_API_KEY in .env" if error.code in (401, 403) else error.read()[:120].decode("utf-8", "replace")
        raise UserError(f"{judge.url}{path}: the server refuses (HTTP {error.code}: {hint}); nothing is lost, try again later.") from error
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        raise UserError(f"{judge.url}{path}: no answer ({error}); nothing is lost, run the same command again.") from error
