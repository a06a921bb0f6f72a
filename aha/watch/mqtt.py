"""Events to an MQTT broker, announced so that Home Assistant finds each stream by itself (MQTT discovery).

Topics, for a receiver mqtt://broker/PREFIX: PREFIX/STREAM/event (JSON with "event_type", as Home Assistant's event entity reads it),
PREFIX/STREAM/picture (JPEG, retained), PREFIX/STREAM/status ("online", "offline" by the broker's will), and
homeassistant/{event,image}/aha_STREAM/config, retained. QoS 1: the broker confirms each event.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aha.watch.receivers import TIMEOUT, Failed
from aha.watch.spool import Entry

if TYPE_CHECKING:
    import paho.mqtt.client as mqtt

KINDS = ["start", "highlight", "say", "question", "behind", "silent", "heard", "lost", "reconnected", "resumed", "end"]


def topic_of(stream: str) -> str:
    """A name as a level of a topic and as an id: no wildcards, no slashes."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda match: f"_{ord(match[0]):x}_", stream)


def discovery(prefix: str, stream: str) -> dict[str, dict[str, Any]]:
    """Topic -> message, for Home Assistant: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery"""
    name, base = topic_of(stream), f"{prefix}/{topic_of(stream)}"
    shared = {
        "availability_topic": f"{base}/status",
        "device": {"identifiers": [f"aha_{name}"], "name": f"Aha {stream}", "manufacturer": "Aha", "model": "aha watch"},
        "origin": {"name": "aha-video"},
    }
    event = {"name": "Event", "unique_id": f"aha_{name}_event", "state_topic": f"{base}/event", "event_types": KINDS, **shared}
    picture = {"name": "Highlight", "unique_id": f"aha_{name}_picture", "image_topic": f"{base}/picture", "content_type": "image/jpeg"}
    return {f"homeassistant/event/aha_{name}/config": event, f"homeassistant/image/aha_{name}/config": {**picture, **shared}}


class Mqtt:
    """Connects at the first event, and again after a failure."""

    def __init__(self, address: str, stream: str):
        self.parts, self.stream = urlsplit(address), stream
        self.prefix = self.parts.path.strip("/") or "aha"
        self.client: mqtt.Client | None = None

    def __call__(self, entry: Entry) -> None:
        try:
            client = self.client or self._connect()
            base = f"{self.prefix}/{topic_of(self.stream)}"
            if entry.picture is not None:
                self._publish(client, f"{base}/picture", entry.picture, retain=True)
            self._publish(client, f"{base}/event", json.dumps({"event_type": entry.event["event"], **entry.event}), retain=False)
        except (OSError, ValueError, RuntimeError) as error:
            if self.client is not None:
                self.client.loop_stop()
            self.client = None
            raise Failed(str(error)) from error

    def _connect(self) -> mqtt.Client:
        import paho.mqtt.client as mqtt  # extra mqtt

        tls = self.parts.scheme == "mqtts"
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.connect_timeout = TIMEOUT
        if self.parts.username:
            client.username_pw_set(unquote(self.parts.username), os.environ.get("AHA_MQTT_PASSWORD") or unquote(self.parts.password or ""))
        if tls:
            client.tls_set()
        status = f"{self.prefix}/{topic_of(self.stream)}/status"
        client.will_set(status, "offline", qos=1, retain=True)
        client.connect(self.parts.hostname or "", self.parts.port or (8883 if tls else 1883))
        client.loop_start()
        self.client = client
        for topic, message in discovery(self.prefix, self.stream).items():
            self._publish(client, topic, json.dumps(message), retain=True)
        self._publish(client, status, "online", retain=True)
        return client

    def _publish(self, client: mqtt.Client, topic: str, payload: str | bytes, retain: bool) -> None:
        info = client.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(TIMEOUT)
        if not info.is_published():
            raise OSError("the broker did not confirm the message")
