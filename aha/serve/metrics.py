"""What Prometheus is told at /metrics: counted here, laid out by prometheus_client."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from aha.serve.sessions import Sessions

RECENT = 4096  # frames over which quantiles and the rate are taken
RATE_SECONDS = 60.0


class Metrics(Collector):
    def __init__(self, sessions: Sessions):
        self.sessions = sessions
        self.frames = 0
        self.seconds = 0.0  # from arrival to decision, of all frames
        self.dropped = 0  # in sessions that are not open any more
        self.left = 0  # sessions that ended or were suspended
        self.wrong_pictures = 0
        self.missed = 0  # messages that readers were too slow for
        self.refused = 0  # requests with a wrong token, host, origin or size
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # when a frame was scored, seconds since it arrived
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def frame(self, seconds: float) -> None:
        with self._lock:
            self.frames += 1
            self.seconds += seconds
            self._recent.append((time.monotonic(), seconds))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        return []

    def delays(self) -> tuple[float, float, float]:
        """(median, 99% quantile) of the seconds from arrival to decision of the last frames, and frames a second over the last minute."""
        with self._lock:
            recent = list(self._recent)
        if not recent:
            return 0.0, 0.0, 0.0
        now = time.monotonic()
        late = [moment for moment, _ in recent if now - moment <= RATE_SECONDS]
        span = RATE_SECONDS if len(late) < len(recent) or now - recent[0][0] > RATE_SECONDS else max(now - recent[0][0], 1e-9)
        if len(late) == RECENT:
            span = max(now - late[0], 1e-9)
        median, high = np.quantile([seconds for _, seconds in recent], (0.5, 0.99))
        return float(median), float(high), len(late) / span

    def collect(self) -> Iterator[Metric]:
        sessions, engine = list(self.sessions.all.values()), self.sessions.engine
        median, high, rate = self.delays()
        yield CounterMetricFamily("aha_frames", "frames that were scored", self.frames)
        yield GaugeMetricFamily("aha_frames_per_second", "frames scored a second, over the last minute", rate)
        delay = SummaryMetricFamily("aha_frame_seconds", "from the arrival of a frame to what it decided", self.frames, self.seconds)
        for quantile, value in (("0.5", median), ("0.99", high)):
            delay.add_sample("aha_frame_seconds", {"quantile": quantile}, value)
        yield delay
        dropped = self.dropped + sum(session.now()["dropped"] - session.counted for session in sessions if session.state == "open")
        yield CounterMetricFamily("aha_frames_dropped", "frames that came faster than they were scored or than is allowed", dropped)
        yield CounterMetricFamily("aha_pictures_wrong", "pictures that could not be read", self.wrong_pictures)
        yield CounterMetricFamily("aha_messages_missed", "scores and events that a reader was too slow for", self.missed)
        yield CounterMetricFamily("aha_requests_refused", "requests with a wrong token, host, origin or size", self.refused)
        states = Counter(session.state for session in sessions)
        streams = GaugeMetricFamily("aha_sessions", "sessions by state", labels=["state"])
        for state in ("open", "suspended", "ended"):
            streams.add_metric([state], states[state])
        yield streams
        yield GaugeMetricFamily("aha_connections", "WebSockets and requests that listen", sum(session.connections for session in sessions))
        pool = engine.watch.engine.pool
        slots = GaugeMetricFamily("aha_cache_slots", "tokens of the key-value cache", labels=["state"])
        slots.add_metric(["used"], pool.used)
        slots.add_metric(["capacity"], pool.capacity)
        yield slots
        yield GaugeMetricFamily("aha_cache_bytes", "memory of the key-value cache", pool.nbytes)
        if torch.cuda.is_available():
            yield GaugeMetricFamily("aha_gpu_memory_bytes", "memory that torch holds on the GPU", torch.cuda.memory_reserved())
