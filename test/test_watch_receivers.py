"""Home Assistant's discovery messages by its documented fields; and (slow) a webhook and mosquitto that fail, hang and come back.

python -m pytest -m slow -s test/test_watch_receivers.py           # two minutes, prints the figures; needs mosquitto and paho-mqtt
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from highlights_media import make_video
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPO
from waiting import free_port, listens, wait_for

from aha.watch.mqtt import KINDS, discovery
from aha.watch.receivers import NOT_SENT, TIMEOUT

# ---- what Home Assistant takes: https://www.home-assistant.io/integrations/event.mqtt, image.mqtt, mqtt (discovery) ----

TOPIC = re.compile(r"homeassistant/(event|image)/[a-zA-Z0-9_-]+/config")
SHARED = {"availability_topic", "device", "origin", "name", "unique_id"}  # of the fields of all entities, those that are used
OWN = {"event": {"state_topic", "event_types"}, "image": {"image_topic", "content_type"}}
NEEDED = {"event": {"state_topic", "event_types"}, "image": {"image_topic"}}
DEVICE = {"identifiers", "connections", "manufacturer", "model", "name", "hw_version", "sw_version", "serial_number", "via_device"}
ORIGIN = {"name", "sw_version", "support_url"}


def check_topic(topic: str) -> None:
    """An MQTT topic to publish to: 1 to 65,535 bytes, no wildcards, no NUL."""
    assert isinstance(topic, str) and 0 < len(topic.encode()) < 65536 and not set(topic) & set("#+\0")


def check_discovery(topic: str, message: dict) -> None:
    """Raises where Home Assistant would refuse a message, or leave out a field."""
    component = TOPIC.fullmatch(topic)[1]
    assert NEEDED[component] <= message.keys() <= SHARED | OWN[component]
    assert isinstance(message["unique_id"], str) and isinstance(message["name"], str)
    for key in message.keys() & {"state_topic", "image_topic", "availability_topic"}:
        check_topic(message[key])
    assert message["device"].keys() <= DEVICE and message["device"]["identifiers"] and all(message["device"]["identifiers"])
    assert all(isinstance(value, str) for key, value in message["device"].items() if key != "identifiers")
    assert message["origin"].keys() <= ORIGIN and message["origin"]["name"]
    if component == "event":
        assert message["event_types"] and all(isinstance(kind, str) and kind for kind in message["event_types"])
    else:
        assert re.fullmatch(r"image/\w+", message["content_type"])


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30), st.sampled_from(["aha", "home/aha"]))
def test_discovery_messages_are_what_home_assistant_takes(stream, prefix):
    messages = {topic: json.loads(json.dumps(message)) for topic, message in discovery(prefix, stream).items()}
    for topic, message in messages.items():
        check_discovery(topic, message)
    assert len(messages) == len({message["unique_id"] for message in messages.values()}) == 2


def test_every_event_that_is_sent_is_one_that_home_assistant_was_told_of():
    """Events of the guide's table, less those that receivers do not get: an unknown event_type would be refused."""
    table = (REPO / "instructions" / "watch.md").read_text(encoding="utf-8").split("## Events")[1].split("## ")[0]
    told = {kind for line in table.splitlines() if line.startswith("| `") for kind in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told - set(NOT_SENT) == set(KINDS) and len(told) > 10


# ---- receivers that fail, hang and come back ----

SECONDS = 90
TROUBLES = [(0, "fails"), (10, "hangs"), (20, "is gone"), (35, "is back")]  # seconds since its first call -> the webhook
BROKER_GONE, BROKER_BACK = 15.0, 30.0
MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")


class MovingHook:
    """A web server at one port whose trouble changes with the time."""

    def __init__(self):
        self.taken: list[str] = []
        self.calls = {"fails": 0, "hangs": 0, "is back": 0}
        self.port = free_port()
        self.began: float | None = None  # at the first call
        self.server = None

    def trouble(self) -> str:
        passed = 0.0 if self.began is None else time.monotonic() - self.began
        return [what for since, what in TROUBLES if passed >= since][-1]

    def keep(self) -> None:
        """Open and close the port as the time wants it; ends with the process."""
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body, what = self.rfile.read(int(self.headers["Content-Length"])), hook.trouble()
                hook.began = hook.began or time.monotonic()
                hook.calls[what] = hook.calls.get(what, 0) + 1
                if what == "hangs":
                    time.sleep(30)
                    return
                self.send_response(200 if what == "is back" else 500)
                self.end_headers()
                if what == "is back":
                    hook.taken.append(json.loads(body)["id"])

        while True:
            gone = self.trouble() == "is gone"
            if gone and self.server is not None:
                self.server.shutdown()
                self.server.server_close()
                self.server = None
            elif not gone and self.server is None:
                ThreadingHTTPServer.allow_reuse_address = True
                self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
                self.server.daemon_threads = True
                threading.Thread(target=self.server.serve_forever, daemon=True).start()
            time.sleep(0.1)


def watched(video: Path, *flags: str) -> list[dict]:
    command = [
        sys.executable,
        "-m",
        "aha.cli",
        "watch",
        str(video),
        "--query",
        "red things",
        "--live",
        "--device",
        "cpu",
        "--window",
        "256",
    ]
    command += ["--highlight_score", "0", "--information_threshold", "1", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")
def test_a_webhook_and_mosquitto_fail_hang_and_come_back_and_the_scoring_goes_on(tmp_path):
    mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt (extra mqtt) is not installed")
    video = tmp_path / "stream.ts"
    make_video(video, seconds=SECONDS, fps=5, container="mpegts", size=(128, 96), sound=True, gop=5)
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {tmp_path}/\n")

    def broker() -> subprocess.Popen:
        return subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)

    heard: list[tuple[str, bytes]] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
    client.reconnect_delay_set(0.2, 0.2)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_message = lambda client, data, message: heard.append((message.topic, message.payload))
    running, hook = [broker()], MovingHook()

    def sent_of(events: list[dict]) -> set[str]:
        return {event["id"] for event in events if event["event"] not in NOT_SENT}

    def told_by_mqtt() -> set[str]:
        return {json.loads(payload)["id"] for topic, payload in list(heard) if topic.startswith("aha/") and topic.endswith("/event")}

    try:
        wait_for(lambda: listens(port), what="mosquitto listens")
        client.connect("127.0.0.1", port)
        client.loop_start()
        threading.Thread(target=hook.keep, daemon=True).start()

        def outage() -> None:
            while not heard:
                time.sleep(0.1)
            time.sleep(BROKER_GONE)
            running[0].kill()
            running[0].wait()
            time.sleep(BROKER_BACK - BROKER_GONE)
            running[0] = broker()

        threading.Thread(target=outage, daemon=True).start()
        targets = [f"http://127.0.0.1:{hook.port}/hook", f"mqtt://127.0.0.1:{port}/aha"]
        events = watched(video, "--state", str(tmp_path / "state"), *(word for target in targets for word in ("--on_event", target)))
        wait_for(lambda: told_by_mqtt() >= sent_of(events), what="all that was sent is heard")
    finally:
        client.loop_stop()
        running[0].kill()
    plain = watched(video)
    sent = [event["id"] for event in events if event["event"] not in NOT_SENT]
    by_mqtt = [json.loads(payload)["id"] for topic, payload in heard if topic.endswith("/event") and not topic.startswith("homeassistant")]
    end, without = events[-1], plain[-1]
    print(f"\nevents sent {len(sent)}; webhook: {hook.calls['fails']} failed, {hook.calls['hangs']} hung, took {len(hook.taken)} "
          f"({len(set(hook.taken))} different); MQTT: {len(by_mqtt)} ({len(set(by_mqtt))} different)")  # fmt: skip
    print(f"scoring: {end['frames']} frames, {end['dropped']} dropped, at most {end['behind_most']:.3f} s behind; without receivers "
          f"{without['frames']} frames, {without['dropped']} dropped, {without['behind_most']:.3f} s")  # fmt: skip
    assert len(sent) == len(set(sent)) > 10 and hook.calls["fails"] and hook.calls["hangs"]
    assert set(hook.taken) == set(sent) and list(dict.fromkeys(hook.taken)) == sent
    assert set(by_mqtt) == set(sent) and list(dict.fromkeys(by_mqtt)) == sent
    # a machine that is busy with other things may drop some; a scoring that waited for a receiver that hangs would be behind for TIMEOUT
    assert end["frames"] + end["dropped"] == without["frames"] + without["dropped"] and end["behind_most"] < TIMEOUT / 2
    for topic, message in discovery("aha", "stream.ts").items():
        kept = [json.loads(payload) for name, payload in heard if name == topic]
        assert kept and all(one == message for one in kept)
        check_discovery(topic, kept[-1])
