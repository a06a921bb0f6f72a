"""Events that arrive: receivers that fail, hang and come back get each one at least once, in order, and stop nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import av
import numpy as np
import pytest
from highlights_media import make_video
from PIL import Image
from waiting import LONG, free_port, listens, wait_for
from watch_server import broken_server

from aha.errors import UserError
from aha.watch import receivers
from aha.watch.cameras import Camera
from aha.watch.clips import PacketRing, cut_file
from aha.watch.receivers import Delivery, Pictures, sender_of
from aha.watch.sources import SourceFrame, open_network
from aha.watch.spool import Spool


def event(n: int, kind: str = "highlight") -> dict:
    return {"event": kind, "time": float(n), "start": 0.0, "end": 1.0, "peak_time": float(n), "score": 0.5, "id": f"run-door-{kind}-{n}"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(receivers, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(receivers, "LONGEST_RETRY", 0.05)
    monkeypatch.setattr(receivers, "TIMEOUT", 0.3)


class Hook:
    """A web server that answers call n as `answer(n)` says: a status, "hang" or "cut". One that hangs answers never; it breaks the
    connection when `released` is set."""

    def __init__(self, answer):
        self.calls: list[tuple[dict, bytes]] = []
        self.released = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body, released = self.rfile.read(int(self.headers["Content-Length"])), hook.released
                what = answer(len(hook.calls))
                hook.calls.append((dict(self.headers), body, what))
                if what == "hang":
                    released.wait()
                elif what != "cut":
                    self.send_response(what)
                    self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def taken(self) -> list[dict]:
        """Each event once: one whose answer came too late for who sent it comes again."""
        return list({(event := json.loads(body))["id"]: event for _, body, what in self.calls if what == 200}.values())


def stream_of(*targets: str):
    return SimpleNamespace(
        key="door", name="door", source=SimpleNamespace(camera=Camera("door", "x", on_event=targets), clip=lambda start, end: None)
    )


def test_a_webhook_that_fails_hangs_and_comes_back_gets_every_event_in_order(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("AHA_WEBHOOK_KEY", "secret")
    monkeypatch.setattr(receivers, "TIMEOUT", LONG)
    hook = Hook(lambda n: {0: "hang", 1: 500, 2: "cut", 3: 404, 4: "hang", 7: 503}.get(n, 200))
    stream, delivery = stream_of(hook.address), Delivery(tmp_path)
    picture = np.full((3, 8, 8), 200, np.uint8)
    for n in range(6):
        delivery.seen(stream, float(n), 0.5, picture)
        delivery.tell(event(n), stream)
        delivery.tell(event(n, "segment"), stream)
    wait_for(lambda: hook.calls, what="the first event is sent")
    assert len(hook.calls) == 1  # the receiver hangs, the watch does not
    monkeypatch.setattr(receivers, "TIMEOUT", 1.0)  # the next one that hangs is given up
    hook.released.set()
    hook.released = threading.Event()
    wait_for(lambda: len(hook.taken()) == 6, what="all events are taken")
    assert delivery.close(LONG) == 0
    assert [taken["id"] for taken in hook.taken()] == [event(n)["id"] for n in range(6)]
    for headers, body, _ in hook.calls:
        assert headers["X-Aha-Signature"] == "sha256=" + hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        assert headers["X-Aha-Event-Id"] == json.loads(body)["id"]
    shown = Image.open(io.BytesIO(base64.b64decode(hook.taken()[0]["picture"])))
    assert shown.format == "JPEG" and shown.size == (8, 8) and abs(int(np.asarray(shown).mean()) - 200) < 4


def put_many(folder, output):
    delivery, stream = Delivery(folder), stream_of(f"jsonl:{output}")
    for n in range(10_000):
        delivery.tell(event(n), stream)
        print(n, flush=True)


def test_what_was_told_before_kill_9_is_delivered_afterwards(tmp_path):
    output = tmp_path / "out" / "events.jsonl"
    context = multiprocessing.get_context("fork")
    reader, writer = os.pipe()

    def child():
        sys.stdout = os.fdopen(writer, "w")
        put_many(tmp_path / "spool", output)

    process = context.Process(target=child)
    process.start()
    os.close(writer)
    with os.fdopen(reader) as told:
        for _ in range(25):
            last = int(told.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        last = max([last, *(int(line) for line in told.read().split("\n")[:-1])])
    delivery, stream = Delivery(tmp_path / "spool"), stream_of(f"jsonl:{output}")
    for n in range(max(0, last - 100), last + 1):  # a watch that goes on tells the last events again
        delivery.tell(event(n), stream)
    assert delivery.close(LONG) == 0
    numbers = [int(json.loads(line)["time"]) for line in output.read_text().splitlines() if line.endswith("}")]
    assert sorted(set(numbers)) == list(range(max(numbers) + 1)) and max(numbers) >= last
    assert len(numbers) - len(set(numbers)) <= 1  # the one on its way at the kill may come twice


def test_a_spool_is_bounded_and_says_what_was_lost(tmp_path):
    spool = Spool(tmp_path, most_bytes=2000)
    for n in range(50):
        assert spool.put(event(n)) and not spool.put(event(n))
    kept, size = len(spool), sum(path.stat().st_size for path in tmp_path.glob("*.event"))
    assert 0 < kept < 20 and size <= 2000 and spool.lost == 50 - kept
    first = spool.oldest()
    assert first.event["time"] == 50 - kept and first.event["lost_before"] == 50 - kept
    spool.done(first)
    assert spool.lost == 0 and "lost_before" not in spool.oldest().event
    again = Spool(tmp_path, most_bytes=2000)
    assert len(again) == kept - 1 and not again.put(event(49)) and not again.put(first.event)
    (tmp_path / sorted(path.name for path in tmp_path.glob("*.event"))[0]).write_text("damaged")
    assert again.oldest().event["time"] == 50 - kept + 2 and again.lost == 1


def test_a_command_hears_of_events_and_its_failure_is_tried_again(quick, tmp_path):
    script = tmp_path / "notify.py"
    script.write_text(
        "import os, sys, pathlib\nhere = pathlib.Path(sys.argv[1])\nn = len(list(here.glob('*.call')))\n"
        "(here / f'{n}.call').write_text(os.environ['AHA_EVENT_ID'] + '\\n' + sys.stdin.read())\nsys.exit(n == 0)\n"
    )
    stream, delivery = stream_of(f"command:{sys.executable} {script} {tmp_path}"), Delivery(tmp_path / "spool")
    receivers.TIMEOUT = LONG
    delivery.tell(event(3, "silent"), stream)
    wait_for(lambda: len(list(tmp_path.glob("*.call"))) == 2, what="the command was called twice")
    assert delivery.close(LONG) == 0
    calls = [path.read_text() for path in sorted(tmp_path.glob("*.call"))]
    assert len(calls) == 2 and calls[0] == calls[1] and json.loads(calls[0].split("\n", 1)[1])["time"] == 3.0


@pytest.mark.parametrize("target", ["", "x", "http://", "jsonl:", "command: ", "mqtt:", "file:///etc/passwd", "ftp://host/x"])
def test_a_receiver_that_is_none_is_one_sentence(target):
    with pytest.raises(UserError, match="is no receiver of events"):
        sender_of(target, "door")


def test_pictures_are_bounded_and_those_of_old_peaks_are_kept():
    pictures = Pictures()
    for n in range(500):
        pictures.add(n / 2, 0.9 if n == 100 else 0.3, np.full((3, 8, 8), n % 250, np.uint8))
    assert len(pictures._recent) + len(pictures._best) <= Pictures.RECENT + Pictures.BEST
    assert abs(int(np.asarray(Image.open(io.BytesIO(pictures.at(50.0)))).mean()) - 100) < 4


# ---- clips ----


def seconds_of(data: bytes) -> tuple[float, float, str]:
    """(seconds of picture, of sound, codec of the picture) of a clip, decoded."""
    with av.open(io.BytesIO(data)) as clip:
        pictures = [frame.time for frame in clip.decode(video=0)]
        clip.seek(0)
        sound = sum(frame.samples / frame.sample_rate for frame in clip.decode(audio=0))
        return pictures[-1] - pictures[0], sound, clip.streams.video[0].codec_context.name


def test_a_clip_has_the_moment_and_its_sound_from_a_file_and_from_a_live_stream(tmp_path):
    path = tmp_path / "clip.ts"
    make_video(path, seconds=20, fps=10, container="mpegts", size=(64, 48), sound=True, gop=10)
    for data in (cut_file(str(path), 5.0, 9.0), ringed(path, 5.0, 9.0)):
        pictures, sound, codec = seconds_of(data)
        assert 3.7 <= pictures <= 5.1 and 3.5 <= sound <= 5.2 and codec == "h264"
    assert cut_file(str(tmp_path / "none.ts"), 0.0, 1.0) is None and seconds_of(cut_file(str(path), 0.0, 2.0))[0] >= 1.8


def ringed(path, start: float, end: float) -> bytes | None:
    ring = PacketRing()
    with broken_server(path, [], live_bytes_per_second=1 << 24) as (address, _):
        items, live = open_network(address, 2.0, 1, ring=ring)
        taken = None
        for item in items:
            if isinstance(item, SourceFrame) and item.time >= 15.0 and taken is None:
                taken = ring.cut(start, end)
        assert live
    return taken


def test_a_ring_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "clip.ts"
    make_video(path, seconds=20, fps=10, container="mpegts", size=(64, 48), sound=True, gop=10)
    monkeypatch.setattr("aha.watch.clips.MOST_SECONDS", 4.0)
    assert ringed(path, 5.0, 9.0) is None and seconds_of(ringed(path, 13.5, 14.5))[0] >= 0.9


# ---- MQTT ----


class Broker:
    """As much of an MQTT 3.1.1 broker as a publisher needs. It drops the connection at the messages numbered in `cut`."""

    def __init__(self, cut=()):
        self.messages: list[tuple[str, bytes, bool]] = []
        self.connections, self.cut = 0, set(cut)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self.server.accept()
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        file = connection.makefile("rb")
        while first := file.read(1):
            length, shift = 0, 0
            while (byte := file.read(1)[0]) & 128:
                length, shift = length | (byte & 127) << shift, shift + 7
            body = file.read(length | byte << shift)
            kind = first[0] >> 4
            if kind == 1:
                connection.sendall(b"\x20\x02\x00\x00")
            elif kind == 3:
                size = struct.unpack(">H", body[:2])[0]
                topic, number = body[2 : 2 + size].decode(), body[2 + size : 4 + size]
                if len(self.messages) in self.cut:
                    self.cut.remove(len(self.messages))
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                self.messages.append((topic, body[4 + size :], bool(first[0] & 1)))
                connection.sendall(b"\x40\x02" + number)
            elif kind == 12:
                connection.sendall(b"\xd0\x00")


def test_mqtt_events_arrive_and_home_assistant_finds_the_stream(quick, tmp_path, monkeypatch):
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt (extra mqtt) is not installed")
    monkeypatch.setattr("aha.watch.mqtt.TIMEOUT", 2.0)
    broker = Broker(cut=[4, 6])
    stream, delivery = stream_of(f"mqtt://127.0.0.1:{broker.port}/home/aha"), Delivery(tmp_path)
    stream.name = "front door/1"
    delivery.seen(stream, 0.0, 0.5, np.zeros((3, 8, 8), np.uint8))
    for n in range(3):
        delivery.tell(event(n), stream)
    wait_for(lambda: len({body for topic, body, _ in broker.messages if topic.endswith("/event")}) == 3, what="three events are taken")
    assert delivery.close(LONG) == 0 and broker.connections >= 2
    told = [json.loads(payload) for topic, payload, _ in broker.messages if topic == "home/aha/front_20_door_2f_1/event"]
    ids = [one["id"] for one in told]
    assert list(dict.fromkeys(ids)) == [event(n)["id"] for n in range(3)] and all(one["event_type"] == "highlight" for one in told)
    retained = {topic: payload for topic, payload, retain in broker.messages if retain}
    found = json.loads(retained["homeassistant/event/aha_front_20_door_2f_1/config"])
    assert found["state_topic"] == "home/aha/front_20_door_2f_1/event" and "highlight" in found["event_types"]
    assert found["availability_topic"] in retained and retained[found["availability_topic"]] == b"online"
    picture = json.loads(retained["homeassistant/image/aha_front_20_door_2f_1/config"])
    assert picture["image_topic"] in retained and retained[picture["image_topic"]][:2] == b"\xff\xd8"
    assert found["unique_id"] != picture["unique_id"] and found["device"]["identifiers"] == picture["device"]["identifiers"]


MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")
def test_mosquitto_that_goes_and_comes_back_gets_every_event(quick, tmp_path, monkeypatch, capsys):
    mqtt = pytest.importorskip("paho.mqtt.client")
    monkeypatch.setattr("aha.watch.mqtt.TIMEOUT", 20.0)
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {tmp_path}/\n")

    def start() -> subprocess.Popen:
        broker = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(port), what="mosquitto listens")
        return broker

    heard: list[tuple[str, bytes]] = []
    # a session that the broker keeps: what it took while the listener was away comes later
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
    client.reconnect_delay_set(0.05, 0.05)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_message = lambda client, data, message: heard.append((message.topic, message.payload))
    broker = start()
    client.connect("127.0.0.1", port)
    client.loop_start()
    stream, delivery = stream_of(f"mqtt://127.0.0.1:{port}/aha"), Delivery(tmp_path / "spool")

    def ids() -> set[str]:
        return {json.loads(payload)["id"] for topic, payload in list(heard) if topic == "aha/door/event"}

    try:
        delivery.tell(event(0), stream)
        wait_for(lambda: len(ids()) == 1 and not delivery.outboxes["door"].receivers[0].spool, what="the first event is taken")
        broker.terminate()
        broker.wait()
        for n in range(1, 4):
            delivery.tell(event(n), stream)
        wait_for(lambda: "does not take events" in capsys.readouterr().err, what="an attempt has failed")
        assert len(delivery.outboxes["door"].receivers[0].spool) == 3
        broker = start()
        delivery.close(LONG)
        again = Delivery(tmp_path / "spool")  # what the last attempt did not get through goes out at the next start
        again.tell(event(4), stream)
        again.close(LONG)
        wait_for(lambda: len(ids()) >= 5, what="all events are heard")
        assert ids() == {event(n)["id"] for n in range(5)}
        found = json.loads(next(payload for topic, payload in heard if topic == "homeassistant/event/aha_door/config"))
        assert found["state_topic"] == "aha/door/event"
    finally:
        client.loop_stop()
        broker.kill()
        broker.wait()
