"""`aha serve`: sessions of strangers on one engine, each as if it were alone; what they may not have is one sentence."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from highlights_media import make_video
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPO, shared_fixture
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serve_server import serving
from waiting import LONG, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync import client as websocket

from aha import cli
from aha.api import Highlighter, load
from aha.errors import UserError
from aha.serve.client import Client, RemoteSession
from aha.serve.guard import check_address
from aha.serve.limits import KEPT, WRONG_IN_A_ROW, Limits
from aha.serve.outbox import Outbox
from aha.serve.pictures import Allowance, ClientFeed, picture_of
from aha.streaming import Session
from aha.video.frames import letterbox

TINY = ("reference/llava-onevision-qwen2-tiny-ov", "reference/aha-adapter")
TOKEN = "a long token of this test"
connect = partial(websocket.connect, open_timeout=LONG)


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load(*(shared_fixture(part) for part in TINY), device="cpu")


@pytest.fixture(scope="module")
def server(model):
    """Sessions may begin as fast as the machine can: how many in a second has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aha.serve.sessions.NEW_EVERY", 1e-6)
        with serving(model, "--max_sessions", 8, "--max_megabytes", 1, "--allow_local_sources") as running:
            patch.undo()
            yield running


@pytest.fixture
def client(server) -> Client:
    return Client(server.address)


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)


def jpeg(image_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=90)
    return file.getvalue()


def scores(messages: list[dict]) -> list[tuple[float, float]]:
    return [(message["time"], message["score"]) for message in messages if message["event"] == "score"]


def status_of(call) -> int:
    with pytest.raises(UserError) as told:
        call()
    return int(re.search(r"\((\d{3})\)$", str(told.value))[1])


def raw_request(server, path: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.address + path, data, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


# ---- a session ----


def test_scores_are_those_of_a_plain_session(model, client):
    with client.session("red things", live=False) as session:
        for k in range(6):
            session.send(picture(k))
        messages = list(session.finish())
    plain = Session(model.model, "red things", tokenizer=model.tokenizer, cache="dynamic_sink", window=256)
    frames = [np.ascontiguousarray(letterbox(picture(k), model.model.config.frame.side).transpose(2, 0, 1)) for k in range(6)]
    expected = [float(plain.push(frame).relevance) for frame in frames]
    assert [time for time, _ in scores(messages)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert np.allclose([score for _, score in scores(messages)], expected, atol=1e-5)
    assert messages[0]["event"] == "start" and messages[-1]["event"] == "end" and messages[-1]["dropped"] == 0
    assert [message["n"] for message in messages] == list(range(1, len(messages) + 1))


def test_the_lines_of_the_guide_run_as_written(server, tmp_path, monkeypatch, capsys):
    make_video(tmp_path / "clip.mp4", seconds=2, fps=5, size=(64, 48), sound=False)
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"<!-- client snippet -->\n```python\n(.*?)```", (REPO / "instructions/serve.md").read_text(), re.DOTALL)[1]
    exec(compile(lines.replace("http://127.0.0.1:8420", server.address), "serve.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert sum("'event': 'score'" in line for line in printed) == 4 and "'event': 'end'" in printed[-1]


def test_a_source_is_read_by_the_server(client, tmp_path):
    make_video(tmp_path / "clip.ts", seconds=4, fps=5, container="mpegts", size=(64, 48), sound=False)
    with client.session("red things", source=str(tmp_path / "clip.ts"), frame_fps=1) as session:
        messages = list(session)
        assert [time for time, _ in scores(messages)] == [0, 1, 2, 3] and messages[-1]["ended"] == "end of stream"
        with pytest.raises(UserError, match="ended"):
            session.ask("what?")
    assert status_of(lambda: client.session("red", source=str(tmp_path / "nothing.ts"))) == 422


@pytest.mark.parametrize("sent", (0, 3))
def test_a_suspended_session_goes_on_as_if_nothing_had_been(client, sent):
    def watched(suspends: bool) -> list[tuple[float, float]]:
        with client.session("red things", live=False) as session:
            for k in range(6):
                if suspends and k == sent:
                    wait_for(lambda: session.about()["frames"] == sent)
                    assert session.suspend()["state"] == "suspended"
                    with pytest.raises(UserError, match="suspended"):
                        session.ask("what?")
                    assert session.resume()["state"] == "open"
                session.send(picture(k))
            return scores(list(session.finish()))

    assert watched(True) == watched(False)


def test_a_question_is_answered_and_changes_what_is_looked_for(client):
    with client.session(live=False) as session:
        assert session.ask("red things") == []
        session.send(picture(0))
        wait_for(lambda: session.about()["frames"] == 1)
        (answer,) = session.ask("what is this?")
        said = [message for message in session.finish() if message["event"] in ("question", "say")]
    assert [message["text"] for message in said] == ["red things", "what is this?", answer]


def test_a_session_without_a_websocket(server):
    status, body, _ = raw_request(server, "/sessions", "POST", b'{"query": "red"}', Content_Type="application/json")
    id = json.loads(body)["id"]
    assert status == 201
    assert raw_request(server, f"/sessions/{id}/frames?time=3", "POST", jpeg(picture(0)), Content_Type="image/jpeg")[0] == 202
    found, after, end = [], 0, time.monotonic() + LONG
    while not scores(found) and time.monotonic() < end:
        got = json.loads(raw_request(server, f"/sessions/{id}/messages?after={after}&wait=10")[1])
        found += got["messages"]
        after = found[-1]["n"] if found else 0
    assert scores(found)[0][0] == 3 and got["missed"] == 0 and not got["over"]
    assert raw_request(server, f"/sessions/{id}/frames?time=3", "POST", jpeg(picture(0)), Content_Type="image/jpeg")[0] == 422  # not later
    assert json.loads(raw_request(server, f"/sessions/{id}", "DELETE")[1])["frames"] == 1
    assert raw_request(server, f"/sessions/{id}/frames", "POST", b"", Content_Type="image/jpeg")[0] == 409


# ---- many at once ----


def test_garbage_a_reader_that_never_reads_and_a_wrong_token_harm_nobody(model):
    results: dict[int, list] = {}

    def good(number: int) -> None:
        with Client(running.address, TOKEN).session("red things", live=False) as session:
            for k in range(8):
                session.send(picture(k))
            results[number] = scores(list(session.finish()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHA_SERVE_TOKEN", TOKEN)
        with serving(model, "--max_sessions", 6) as running:
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            client = Client(running.address, TOKEN)
            deaf, wrong = RemoteSession(client, "never-reads"), RemoteSession(client, "sends-garbage")
            for session in (deaf, wrong):
                client.call("POST", "/sessions", {}, session.headers)
            with (
                connect(
                    f"ws://127.0.0.1:{running.port}/sessions/never-reads/live", additional_headers=bearer, max_queue=1, close_timeout=0.1
                ) as never,
                connect(f"ws://127.0.0.1:{running.port}/sessions/sends-garbage/live", additional_headers=bearer) as garbage,
            ):
                threads = [threading.Thread(target=good, args=(n,)) for n in range(3)]
                for thread in threads:
                    thread.start()
                told = []
                with pytest.raises(ConnectionClosed) as closed:
                    for k in range(2 * WRONG_IN_A_ROW):
                        garbage.send(b"\xff\xd8\xff no picture" if k < 3 else '{"open": "sesame"}')
                        if k < 3:
                            never.send(jpeg(picture(k)))
                        told.append(garbage.recv(LONG))
                with pytest.raises(InvalidStatus) as refused:
                    connect(f"ws://127.0.0.1:{running.port}/sessions/never-reads/live", additional_headers={"Authorization": "Bearer no"})
                for thread in threads:
                    thread.join(LONG)
            assert closed.value.rcvd.code == 1003 and refused.value.response.status_code == 401
            assert sum("error" in one for one in told) >= WRONG_IN_A_ROW - 1
            assert len(results) == 3 and all(len(one) == 8 for one in results.values())
            assert np.allclose(results[0], results[1], atol=1e-5) and np.allclose(results[0], results[2], atol=1e-5)
            assert client.sessions() and status_of(Client(running.address, "no").sessions) == 401

            def measured() -> dict:
                return {family.name: family.samples for family in text_string_to_metric_families(client.metrics())}

            wait_for(lambda: measured()["aha_frames"][0].value == 27, what="what the deaf one sent is scored too")
            families = measured()
            assert families["aha_pictures_wrong"][0].value == 3
            assert families["aha_requests_refused"][0].value == 2
            assert {sample.labels.get("quantile") for sample in families["aha_frame_seconds"]} >= {"0.5", "0.99"}
            assert families["process_resident_memory_bytes"][0].value > 1e6


def test_who_hangs_up_in_the_middle_of_a_question_stops_nothing(server, client):
    with client.session("red", live=False) as session:
        session.send(picture(0))
        for _ in range(8):
            with connect(f"ws://127.0.0.1:{server.port}/sessions/{session.id}/live", close_timeout=0.01) as socket:
                socket.send(json.dumps({"ask": "what is this?"}))
        session.send(picture(1))
        assert [time for time, _ in scores(list(session.finish()))] == [0, 0.5]
    assert json.loads(raw_request(server, "/healthz")[1])["ok"] and server.sessions.engine.error is None


def test_a_state_that_cannot_be_written_ends_its_session_alone(server, client, monkeypatch):
    with client.session("red", live=False) as other, client.session("red", live=False) as session:
        monkeypatch.setattr("aha.serve.sessions.torch.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert status_of(session.suspend) == 507 and session.about()["state"] == "ended"
        other.send(picture(0))
        assert len(scores(list(other.finish()))) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60), st.sampled_from([0, 7]))
def test_an_outbox_counts_what_a_slow_reader_misses(steps, before):
    """Messages come `many` at a time, and are sometimes read: each is read once, in order, or counted as missed."""
    outbox, at, read, missed = Outbox(lambda work: None), 0, [], 0
    outbox.last = before  # of an earlier run, whose messages are gone
    for reads, many in steps:
        for k in range(25 * many):
            outbox.put({"event": "score" if k % 10 else "segment"})
        while reads and at < outbox.last:
            found, gone, now = outbox.after(at)
            assert now > at
            read, missed, at = read + [number for number, _ in found], missed + gone, now
    assert read == sorted(set(read)) and len(read) + missed == at
    assert len(outbox._scores) <= KEPT and len(outbox._events) <= KEPT
    assert outbox.after(10**9) == ([], 0, outbox.last)


def test_pictures_that_come_too_fast_are_dropped_oldest_first_before_they_are_decoded(monkeypatch):
    decoded: list[int] = []
    go = threading.Event()

    def slow(data, raw_size, most):
        go.wait(LONG)
        decoded.append(data[0])
        return picture(0)

    monkeypatch.setattr("aha.serve.pictures.picture_of", slow)
    monkeypatch.setattr("aha.serve.pictures.time", SimpleNamespace(monotonic=lambda: 0.0))  # no time passes
    feed = ClientFeed(10, 28, 3, Limits(max_fps=8), None, print, lambda: None)
    sent = [feed.send(bytes([k])) for k in range(12)]
    assert feed.dropped == sent.count(False) and sum(sent) in (3, 4)  # one may be in work; from the ninth on they come too fast
    assert [feed.send(b"x") for _ in range(2)] == [False, False] and not feed.has_room
    go.set()
    feed.finish()
    frames = []
    while not feed.empty:
        if (item := feed.get(1)) is not None:
            frames.append(item.time)
    assert decoded[-3:] == [5, 6, 7] and frames[-3:] == [0.5, 0.6, 0.7]
    with pytest.raises(UserError, match="no more"):
        feed.send(b"x")


def test_an_allowance_is_a_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("aha.serve.pictures.time", SimpleNamespace(monotonic=lambda: now[0]))
    allowance, few = Allowance(10), Allowance(0.5, 4)
    assert [allowance.take() for _ in range(12)] == [True] * 10 + [False] * 2 and [few.take() for _ in range(5)] == [True] * 4 + [False]
    now[0] = 0.25
    assert [allowance.take() for _ in range(3)] == [True, True, False] and not few.is_there
    now[0] = 100.0
    assert sum(allowance.take() for _ in range(99)) == 10 and sum(few.take() for _ in range(99)) == 4


def test_sessions_that_begin_without_end_are_held_back(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("aha.serve.pictures.time", SimpleNamespace(monotonic=lambda: now[0]))
    with serving(model, "--max_sessions", 1) as running:
        client = Client(running.address)

        def begin() -> int:
            try:
                id = json.loads(client.call("POST", "/sessions", {}))["id"]
                client.call("DELETE", f"/sessions/{id}")
                return 201
            except UserError as error:
                return int(str(error)[-4:-1])

        assert [begin() for _ in range(4)] == [201, 201, 429, 429]
        now[0] = 1.0
        assert [begin() for _ in range(2)] == [201, 429]


# ---- what is not allowed ----


def test_pictures_of_every_kind_and_what_is_none():
    image = picture(0)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert (picture_of(file.getvalue(), None, 10**6) == image).all() and (picture_of(image.tobytes(), (64, 48), 10**6) == image).all()
    assert picture_of(jpeg(image), None, 10**6).shape == image.shape
    bitmap = io.BytesIO()
    Image.fromarray(image).save(bitmap, "BMP")
    for data, raw, said in (
        (bitmap.getvalue(), None, "neither JPEG nor PNG"),
        (b"", None, "neither JPEG nor PNG"),
        (b"\xff\xd8\xff nothing", None, "damaged"),
        (jpeg(image)[:-200], None, "cannot be read"),
        (file.getvalue()[:-200], None, "cannot be read"),
        (file.getvalue(), (64, 48), "9,216 bytes"),
    ):
        with pytest.raises(UserError, match=said):
            picture_of(data, raw, 10**6)
    with pytest.raises(UserError, match="more than 3,000"):
        picture_of(jpeg(image), None, 3000)


def test_too_large_too_many_and_unknown_are_one_sentence_each(server, client):
    big = b"\xff\xd8\xff" + bytes(2_000_000)
    with client.session("red") as session:
        path = f"/sessions/{session.id}"
        assert raw_request(server, f"{path}/frames", "POST", big)[0] == 413
        assert raw_request(server, f"{path}/ask", "POST", b"[" * 70_000, Content_Type="application/json")[0] == 413
        assert raw_request(server, f"{path}/ask", "POST", b'{"text": ""}', Content_Type="application/json")[0] == 422
        assert status_of(lambda: client.session("again", id=session.id)) == 409
        with connect(f"ws://127.0.0.1:{server.port}{path}/live") as socket:
            with pytest.raises(ConnectionClosed) as closed:
                socket.send(big)
                for _ in range(99):
                    socket.recv(LONG)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009  # it may hang up while the picture is being sent
    for settings_of, status in (
        ({"frame_fps": 0}, 422), ({"frame_fps": 1000}, 422), ({"raw_size": [10**6, 10**6]}, 422), ({"quary": "x"}, 422),
        ({"id": "a"}, 422), ({"id": "../../etc"}, 422), ({"source": "-"}, 422),
    ):  # fmt: skip
        assert status_of(lambda settings_of=settings_of: client.session("red", **settings_of)) == status, settings_of
    assert raw_request(server, "/sessions/..%2f..%2fetc")[0] == 404 and raw_request(server, "/sessions/nobody-here")[0] == 404
    many = [client.session() for _ in range(8)]
    assert status_of(client.session) == 429
    for session in many:
        session.close()
        session.leave()
    with client.session():
        pass


def test_a_session_that_nobody_cares_for_is_closed(model, monkeypatch):
    """One that somebody listens to stays, however long ago it was asked for something. Time is made to pass by hand."""
    monkeypatch.setattr("aha.serve.sessions.SWEEP_SECONDS", 0.02)
    with serving(model, "--idle_seconds", 3600, "--max_sessions", 2) as running:
        client = Client(running.address)
        left, alone = client.session("red"), json.loads(client.call("POST", "/sessions", {}))["id"]
        mine, other = (running.sessions.all[id] for id in (left.id, alone))

        def forget(*sessions) -> None:
            for session in sessions:
                session.touched -= 7200

        wait_for(lambda: mine.connections, what="the client listens")
        forget(mine, other)
        wait_for(lambda: other.state == "ended", what="the one without a listener is closed")
        assert mine.state == "open"
        left.leave()
        wait_for(lambda: not mine.connections, what="the client has hung up")
        forget(mine)
        wait_for(lambda: mine.state == "ended", what="the other one is closed too")
        with client.session("another"):
            pass


def test_who_leaves_while_it_connects_hangs_up(model, monkeypatch):
    """The server has accepted the connection, the client does not know it yet."""
    made, go_on = threading.Event(), threading.Event()

    def slow_connect(*given, **named):
        socket = connect(*given, **named)
        made.set()
        go_on.wait(LONG)
        return socket

    monkeypatch.setattr("aha.serve.client.connect", slow_connect)
    with serving(model) as running:
        session = Client(running.address).session("red")
        assert made.wait(LONG)
        mine = running.sessions.all[session.id]
        wait_for(lambda: mine.connections, what="the server has a listener")
        session.leave()
        go_on.set()
        wait_for(lambda: not mine.connections, what="the client has hung up")
        assert list(session) == [] and mine.state == "open"


def test_hosts_origins_headers_and_no_token_for_the_page(model, server, monkeypatch):
    assert raw_request(server, "/sessions", Host="evil.example")[0] == 421
    assert raw_request(server, "/sessions", Origin="http://evil.example")[0] == 403
    assert raw_request(server, "/sessions", Sec_Fetch_Site="cross-site")[0] == 403
    assert raw_request(server, "/sessions", "POST", b'{"query": "x"}', Content_Type="text/plain")[0] == 422  # a form of another page
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{server.port}/sessions/whatever1/live", origin="http://evil.example")
    assert refused.value.response.status_code == 403
    monkeypatch.setenv("AHA_SERVE_TOKEN", TOKEN)
    with serving(model, "--max_sessions", 1) as guarded:
        status, page, headers = raw_request(guarded, "/docs")
        assert status == 200 and b"swagger-ui" in page and headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"(src|href)=\"(https?:)?//", page)  # nothing from elsewhere
        for path in re.findall(rb"(?:src|href)=\"(/[^\"]+)\"", page):
            assert raw_request(guarded, path.decode())[0] == 200
        described = json.loads(raw_request(guarded, "/openapi.json")[1])
        assert {"/sessions", "/sessions/{id}/frames", "/sessions/{id}/ask", "/sessions/{id}/suspend", "/metrics"} <= set(described["paths"])
        assert raw_request(guarded, "/healthz")[0] == 200
        for path in ("/sessions", "/metrics", "/docs/../sessions"):
            assert raw_request(guarded, path)[0] == 401
        assert raw_request(guarded, "/sessions", Authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize(
    "address, said",
    [
        ("/etc/passwd", "no address on the network"), ("file:///etc/passwd", "no address on the network"), ("camera", "no address"),
        ("-", "no address"), ("concat:http://a|http://b", "no address"), ("http://127.0.0.1/x", "on the server itself"),
        ("http://localhost:1/x", "on the server itself"), ("http://2130706433/x", "on the server itself"), ("http://[::1]/x", "itself"),
        ("http://[::ffff:127.0.0.1]/x", "on the server itself"), ("http://0.0.0.0/x", "itself"), ("http://169.254.169.254/x", "itself"),
        ("tcp://10.0.0.1:99?listen=1", "must begin with"), ("udp://10.0.0.1:99", "must begin with"), ("http:///x", "name a host"),
        ("http://a b/x", "no address"), ("http://x\\@127.0.0.1/", "no address"), ("http://10.0.0.1:99999/", "no valid address"),
        ("http://nowhere.invalid/x", "cannot be found"),
    ],
)  # fmt: skip
def test_strangers_name_no_file_and_nothing_of_this_machine(address, said):
    with pytest.raises(UserError, match=said):
        check_address(address, allow_local=False)


def test_an_address_of_the_network_may_be_named_and_secrets_in_it_are_not_shown(server):
    check_address("rtsp://bob:secret@192.0.2.7/live", allow_local=False)
    with pytest.raises(UserError) as told:
        check_address("rtsp://bob:secret@127.0.0.1/live?key=hidden", allow_local=False)
    assert "secret" not in str(told.value) and "hidden" not in str(told.value)


def test_other_machines_need_a_token(monkeypatch):
    monkeypatch.delenv("AHA_SERVE_TOKEN", raising=False)
    with pytest.raises(UserError, match="set a token in the environment"):
        cli.run(["serve", "--host", "0.0.0.0"])
    with pytest.raises(UserError, match="max_sessions must be above 0"):
        cli.run(["serve", "--max_sessions", "0"])


@pytest.mark.slow
def test_the_command_ends_in_order_and_goes_on_with_its_sessions(tmp_path, request):
    """SIGTERM with --state: what was open is suspended, and goes on in the next run."""
    command = [sys.executable, "-m", "aha.cli", "serve", "--port", "0", "--state", str(tmp_path), "--max_sessions", "2", "--device", "cpu"]
    found = []
    for run in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO)
        request.addfinalizer(process.kill)
        client = Client(re.search(r"http://\S+", process.stdout.readline())[0])
        if run == 0:
            session = client.session("red things", id="goes-on-after-it", live=False)
        else:
            session = client.attach("goes-on-after-it")
            assert session.about()["state"] == "suspended" and session.resume()["frames"] == 3  # also while somebody listens to it
        for k in range(3):
            session.send(picture(3 * run + k))
        wait_for(lambda: session.about()["frames"] == 3 * run + 3)  # noqa: B023 (called at once)
        if run == 1:
            found += list(session.finish())
        session.leave()
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=LONG)
        assert process.returncode == 0 and "Traceback" not in error
    assert found[-1]["event"] == "end" and found[-1]["frames"] == 6 and found[-1]["time"] == 2.5


@pytest.mark.slow
def test_twenty_clients_for_a_while():
    """benchmarks/serve.py, a minute of it; ten minutes are run by hand."""
    command = [sys.executable, "benchmarks/serve.py", "--seconds", "60", "--clients", "20", "--fps", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == 0 and result["dropped"] == 0 and result["wrong_token_status"] == 401
