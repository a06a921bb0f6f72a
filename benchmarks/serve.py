"""`aha serve` under load: clients that send pictures and read scores, and three that misbehave.

    python benchmarks/serve.py --seconds 600 --clients 20 --fps 0.4                     # the demo model on a CPU
    python benchmarks/serve.py --seconds 600 --clients 100 --fps 2 -- --model mmduet-7b # a GPU; after --, flags of aha serve

Starts `aha serve` with a token, and drives it with the product's own client (aha.serve.client). In the first tenth of the time (at most a
minute) only the good clients are there; then one sends garbage, one never reads, and one has a wrong token, all again and again. A good
client begins a new session every --session_seconds. A latency is the time from `send` to the score at the client. Prints the server's
memory (from its /metrics) once a minute, and one JSON line last; "wrong" counts promises that were not kept: a frame dropped or not
scored, memory that grew by more than 3% after the first fifth (of five minutes or more), a wrong token let in, an error.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

from aha.errors import UserError
from aha.serve.client import Client

SIZE = (640, 480)
SETTLED = 300.0  # seconds: in shorter runs the caches of the sessions are still filling
GARBAGE = (b"\xff\xd8\xff" + bytes(5000), b"", bytes(100_000), "[" * 20_000, '{"time": -1}', '{"ask": ""}', "\0", b"\x89PNG\r\n\x1a\n")


def pictures(count: int) -> list[bytes]:
    """Coloured squares on noise, as JPEG."""
    random, found = np.random.default_rng(0), []
    for n in range(count):
        image = random.integers(90, 130, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        x, y = random.integers(0, 400, 2)
        image[y : y + 80, x : x + 80] = (220, 30, 30) if n % 3 == 0 else (30, 60, 220)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


class Load:
    """What all clients share."""

    def __init__(self, args: argparse.Namespace, address: str, token: str):
        self.args, self.address, self.token = args, address, token
        self.images = pictures(32)
        self.stop = threading.Event()
        self.begin = time.monotonic()
        self.latencies: list[tuple[float, float]] = []  # moment, seconds
        self.sent = self.dropped = self.sessions = 0
        self.garbage = self.garbage_closed = self.never_read = 0
        self.refused: set[int] = set()
        self.late: list[float] = []
        self.errors: list[str] = []
        self.lock = threading.Lock()

    def run(self, client, *numbers: int) -> threading.Thread:
        def work() -> None:
            try:
                client(*numbers)
            except Exception as error:  # noqa: BLE001 (reported in the result)
                self.errors.append(f"{client.__name__}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def good(self, number: int) -> None:
        """Sends --fps pictures a second, reads every message, begins anew every --session_seconds."""
        fps = self.args.fps
        self.stop.wait(number / self.args.clients / fps)
        while not self.stop.is_set():
            with Client(self.address, self.token).session("the red square", frame_fps=fps) as session:
                moments: dict[float, float] = {}
                end: dict = {}

                def read(session=session, moments=moments, end=end) -> None:
                    for message in session:
                        if message["event"] == "score":
                            now = time.monotonic()
                            with self.lock:
                                self.latencies.append((now - self.begin, now - moments[message["time"]]))
                        elif message["event"] in ("error", "missed"):
                            self.errors.append(json.dumps(message))
                        elif message["event"] == "end":
                            end.update(message)

                reader = self.run(read)
                start = time.monotonic()
                count = max(1, round(self.args.session_seconds * (0.75 + number % 8 / 16) * fps))
                for k in range(count):
                    if self.stop.wait(max(0.0, start + k / fps - time.monotonic())):
                        break
                    moments[k / fps] = time.monotonic()
                    session.send(self.images[(k + number) % len(self.images)], k / fps)
                session.close()
                reader.join(60)
                with self.lock:
                    self.sent, self.sessions, self.dropped = self.sent + len(moments), self.sessions + 1, self.dropped + end["dropped"]
                    if end["frames"] + end["dropped"] != len(moments):
                        self.errors.append(f"{len(moments)} pictures sent, {end['frames']} scored, {end['dropped']} dropped")

    def _session(self, name: str) -> str:
        client = Client(self.address, self.token)
        id = f"{name}-{secrets.token_hex(8)}"
        client.call("POST", "/sessions", {"query": "anything"}, {"X-Session-Id": id})
        return id

    def _connect(self, id: str, token: str, **options):
        headers = {"Authorization": f"Bearer {token}"}
        return connect(f"ws{self.address.removeprefix('http')}/sessions/{id}/live", additional_headers=headers, **options)

    def sends_garbage(self) -> None:
        for data in itertools.cycle(GARBAGE):
            if self.stop.is_set():
                return
            id = self._session("garbage")
            try:
                with self._connect(id, self.token) as socket:
                    while not self.stop.wait(0.1):
                        socket.send(data if self.garbage % 3 else secrets.token_bytes(2000))
                        self.garbage += 1
            except WebSocketException:
                self.garbage_closed += 1
            try:
                Client(self.address, self.token).call("DELETE", f"/sessions/{id}")
            except UserError as error:
                self.errors.append(str(error))

    def never_reads(self) -> None:
        """Its session goes on; when the server hangs up (it answers no ping) it comes back."""
        id = self._session("deaf")
        while not self.stop.is_set():
            try:
                with self._connect(id, self.token, max_queue=1, ping_interval=None, close_timeout=0.1) as socket:
                    for k in itertools.count():
                        if self.stop.wait(1 / self.args.fps):
                            break
                        socket.send(self.images[k % len(self.images)])
                        self.never_read += 1
            except WebSocketException:
                continue
        Client(self.address, self.token).call("DELETE", f"/sessions/{id}")

    def wakes(self) -> None:
        """How late this machine wakes a thread that sleeps: what is not the server's doing."""
        while not self.stop.is_set():
            before = time.monotonic()
            time.sleep(0.05)
            self.late.append(time.monotonic() - before - 0.05)

    def has_a_wrong_token(self) -> None:
        while not self.stop.wait(0.5):
            try:
                with self._connect("whatever", secrets.token_hex(16)):
                    self.refused.add(101)
            except InvalidStatus as error:
                self.refused.add(error.response.status_code)


def metrics(client: Client) -> dict[str, float]:
    samples = [sample for family in text_string_to_metric_families(client.metrics()) for sample in family.samples]
    return {sample.name + "".join(f"_{value}" for value in sample.labels.values()): sample.value for sample in samples}


def quantiles(latencies: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(1e3 * float(np.quantile(latencies, q / 100)), 1) for q in (50, 95, 99)} if latencies else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--fps", type=float, default=0.4, help="pictures a second that each client sends")
    parser.add_argument("--session_seconds", type=float, default=60, help="how long a session of a client lasts, about")
    parser.add_argument("serve", nargs="*", help="flags of aha serve, after --")
    args = parser.parse_args()
    token, environment = secrets.token_hex(16), {**os.environ}
    environment |= {"AHA_SERVE_TOKEN": token, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "LLaVA_NeXT")))}
    command = [sys.executable, "-m", "aha.cli", "serve", "--port", "0", "--max_sessions", str(args.clients + 4), *args.serve]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = server.stdout.readline() if server.stdout else ""
        if (found := re.search(r"http://\S+", line)) is None:
            sys.exit("aha serve did not start; its error is above")
        return measured(args, server, found[0], token)
    finally:
        server.terminate()
        server.wait(60)


def measured(args: argparse.Namespace, server: subprocess.Popen, address: str, token: str) -> int:
    load, client = Load(args, address, token), Client(address, token)
    threads = [load.run(load.good, n) for n in range(args.clients)]
    load.run(load.wakes)
    calm, curve, told = min(60.0, args.seconds / 10), [], -1
    while (passed := time.monotonic() - load.begin) < args.seconds:
        if passed >= calm and len(threads) == args.clients:
            threads += [load.run(one) for one in (load.sends_garbage, load.never_reads, load.has_a_wrong_token)]
        now = metrics(client)
        curve.append((passed, now["process_resident_memory_bytes"] / 1e6))
        if passed // 60 != told:
            told = passed // 60
            rate, p99 = now["aha_frames_per_second"], now["aha_frame_seconds_0.99"]
            print(f"{passed:6.0f} s  {curve[-1][1]:7.1f} MB  {now['aha_sessions_open']:.0f} sessions  {rate:5.2f} frames/s  "
                  f"p99 {1e3 * p99:6.1f} ms  dropped {now['aha_frames_dropped_total']:.0f}", flush=True)  # fmt: skip
        time.sleep(min(5.0, max(0.05, args.seconds / 60)))
    load.stop.set()
    for thread in threads:
        thread.join(90)
    last = metrics(client)
    waited = sum(int(path.read_text().split()[1]) for path in Path(f"/proc/{server.pid}/task").glob("*/schedstat")) / 1e9
    settled = [megabytes for moment, megabytes in curve if moment > args.seconds / 5]
    slope = np.polyfit(*zip(*[(m, mb) for m, mb in curve if m > args.seconds / 5]), 1)[0] * 3600
    early, late = (float(np.mean(part)) for part in (settled[: len(settled) // 4 + 1], settled[-len(settled) // 4 :]))
    before = [seconds for moment, seconds in load.latencies if 2 < moment < calm]
    after = [seconds for moment, seconds in load.latencies if moment >= calm]
    result = {
        "benchmark": "serve", "clients": args.clients, "fps_each": args.fps, "seconds": args.seconds, "sessions": load.sessions,
        "frames": len(load.latencies), "frames_per_second": round(len(load.latencies) / args.seconds, 2), "sent": load.sent,
        "dropped": load.dropped, **quantiles([seconds for _, seconds in load.latencies]),
        "good_clients_alone": quantiles(before), "beside_the_bad_ones": quantiles(after),
        "server_p50_ms": round(1e3 * last["aha_frame_seconds_0.5"], 1), "server_p99_ms": round(1e3 * last["aha_frame_seconds_0.99"], 1),
        "server_cpu_s": round(last["process_cpu_seconds_total"], 1), "server_frames": int(last["aha_frames_total"]),
        "server_waited_for_a_core_s": round(waited, 1), "machine_wakes_late": quantiles(load.late), "load_average": os.getloadavg(),
        "garbage_sent": load.garbage, "garbage_closed": load.garbage_closed, "never_reader_sent": load.never_read,
        "messages_missed": int(last["aha_messages_missed_total"]), "requests_refused": int(last["aha_requests_refused_total"]),
        "wrong_token_status": next(iter(load.refused)) if len(load.refused) == 1 else sorted(load.refused),
        "memory_mb": [round(megabytes, 1) for megabytes in [curve[round(k)][1] for k in np.linspace(0, len(curve) - 1, 11)]],
        "memory_mb_per_hour": round(float(slope), 2), "memory_growth": round(late / early - 1, 5), "errors": load.errors[:5],
    }  # fmt: skip
    alive = sum(thread.is_alive() for thread in threads)
    missing = load.dropped > 0 or len(load.latencies) != load.sent
    result["wrong"] = int(args.seconds >= SETTLED and late / early > 1.03) + missing + (load.refused != {401}) + len(load.errors) + alive
    for key, value in result.items():
        print(f"  {key:22} {value}")
    print(json.dumps(result))
    return int(result["wrong"] > 0)


ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.exit(main())
