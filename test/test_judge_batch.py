"""A judge's batch over a real HTTP connection on localhost: sent once, polled, fetched, taken up again after a kill."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from waiting import LONG

from aha.errors import UserError
from aha.eval.judge import EndpointJudge, JudgmentCache, Pair, read_batch, write_batch
from aha.eval.judge_batch import send_and_fetch

PAIRS = [Pair("what?", "a dog", f"answer {i}") for i in range(3)]


class Provider:
    """statuses: what successive polls say; grade: the answer to every request."""

    def __init__(self, statuses, errors=None):
        self.statuses, self.errors, self.uploads, self.keys, self.batches = list(statuses), errors, [], set(), 0

    def get(self, path):
        if path == "/v1/files/out/content":
            return "\n".join(
                json.dumps({"custom_id": line["custom_id"], "response": {"body": {"choices": [{"message": {"content": "4"}}]}}})
                for line in map(json.loads, self.uploads[-1].splitlines())
            )
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        done = {"output_file_id": "out"} if status == "completed" else {}
        return json.dumps({"id": "b1", "status": status, "errors": self.errors, "request_counts": {"completed": 1, "total": 3}} | done)

    def post(self, path, body):
        if path == "/v1/files":
            self.uploads.append(body.split(b"application/jsonl\r\n\r\n")[1].split(b"\r\n--")[0].decode())
            return json.dumps({"id": "file-1"})
        assert json.loads(body)["input_file_id"] == "file-1"
        self.batches += 1
        return json.dumps({"id": "b1", "status": "validating"})


@contextmanager
def served(provider):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, text):
            provider.keys.add(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            self.answer(provider.get(self.path))

        def do_POST(self):
            self.answer(provider.post(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield EndpointJudge(f"http://127.0.0.1:{server.server_address[1]}/v1", "scripted", "the key", timeout=LONG)
    finally:
        server.shutdown()
        server.server_close()


def test_a_batch_is_sent_polled_and_fetched(tmp_path):
    provider = Provider(["validating", "in_progress", "completed"])
    with served(provider) as judge:
        cache = JudgmentCache(tmp_path / "cache.jsonl")
        assert write_batch(PAIRS, judge, cache, tmp_path / "input.jsonl") == 3
        output = send_and_fetch(judge, tmp_path, wait=LONG, poll=0.01)
    assert read_batch(output, cache) == (3, 0) and provider.batches == 1 and provider.keys == {"Bearer the key"}
    assert provider.uploads[0].strip() == (tmp_path / "input.jsonl").read_text().strip()
    assert not (tmp_path / "sent.json").exists() and set(cache.grades.values()) == {4}
    assert "the key" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_batch_under_way_is_taken_up_again_and_not_paid_twice(tmp_path):
    provider = Provider(["in_progress"])
    with served(provider) as judge:
        write_batch(PAIRS, judge, JudgmentCache(tmp_path / "cache.jsonl"), tmp_path / "input.jsonl")
        for _ in range(2):
            with pytest.raises(UserError, match=r"batch b1 is in_progress \(1 of 3 answers are there\); the same command, run later"):
                send_and_fetch(judge, tmp_path, wait=0, poll=0.01)
        provider.statuses = ["completed"]
        assert send_and_fetch(judge, tmp_path, wait=0, poll=0.01).exists()
    assert provider.batches == 1


def test_a_failed_batch_says_why(tmp_path):
    with served(Provider(["failed"], {"data": [{"message": "no such model"}]})) as judge:
        write_batch(PAIRS, judge, JudgmentCache(tmp_path / "cache.jsonl"), tmp_path / "input.jsonl")
        with pytest.raises(UserError, match="b1 is failed without an answer .no such model."):
            send_and_fetch(judge, tmp_path, wait=1, poll=0.01)


def test_a_server_that_is_not_there(tmp_path):
    judge = EndpointJudge("http://127.0.0.1:9/v1", "scripted")
    (tmp_path / "input.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="nothing is lost, run the same command again"):
        send_and_fetch(judge, tmp_path, wait=0)
    assert not (tmp_path / "sent.json").exists()
