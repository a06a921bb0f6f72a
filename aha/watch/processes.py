"""Several GPUs: an engine process on each, the streams dealt out by how many frames a second they bring.

    watch_on_several(args, engines=4, ...)

A stream stays where it is for as long as it is watched; a new one goes to the engine with the least to do. All processes print whole lines
to one output. Questions and changes of the file of cameras come to this process, which passes them on. A process that fails takes only its
own streams along.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import signal
import sys
import threading
from typing import Any

from aha.api import DEMO_NOTE, load_choice
from aha.core.flags import from_args
from aha.core.fusion import Fusion
from aha.core.readers import leave_readers
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.scoring.model_choice import ModelChoice
from aha.watch.cameras import Camera
from aha.watch.questions import Questions


class Dealer:
    """Which engine watches which camera."""

    def __init__(self, engines: int):
        self.engines = engines
        self.places: dict[str, int] = {}  # camera name -> engine

    def deal(self, cameras: list[Camera]) -> list[list[Camera]]:
        """The cameras of each engine. Those that were dealt before stay; the new ones go, the heaviest first, to where least is to do."""
        self.places = {camera.name: self.places[camera.name] for camera in cameras if camera.name in self.places}
        loads = [0.0] * self.engines
        for camera in cameras:
            if camera.name in self.places:
                loads[self.places[camera.name]] += camera.load
        for camera in sorted((c for c in cameras if c.name not in self.places), key=lambda camera: -camera.load):
            engine = loads.index(min(loads))
            self.places[camera.name] = engine
            loads[engine] += camera.load
        return [[camera for camera in cameras if self.places[camera.name] == engine] for engine in range(self.engines)]


class Inbox:
    """What the parent sends to an engine process: questions (take) and changed lists of cameras (changed, cameras)."""

    def __init__(self, cameras: list[Camera], messages: Any):
        self.cameras, self.messages = cameras, messages
        self.parent = os.getppid()
        self._questions: list[str] = []

    def changed(self) -> bool:
        changed = False
        while True:
            try:
                what, value = self.messages.get_nowait()
            except queue.Empty:
                break
            if what == "question":
                self._questions.append(value)
            else:
                self.cameras, changed = value, True
        return changed

    def take(self) -> list[str]:
        taken, self._questions = self._questions, []
        return taken

    @property
    def orphaned(self) -> bool:
        return os.getppid() != self.parent


def device_of(engine: int, device: str | None) -> str | None:
    """cuda:0, cuda:1, ... where the model goes to a GPU; else what was asked for."""
    import torch

    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    return f"cuda:{engine % gpus}" if gpus else device


def engines_of(args: argparse.Namespace, cameras: list[Camera]) -> int:
    """How many engine processes: --engines, or one for each GPU that has something to do. Raises UserError."""
    has_pipe = any(camera.address == "-" for camera in cameras)
    if args.engines is not None:
        if args.engines < 1 or (args.engines > 1 and has_pipe):
            why = "standard input can be read by one engine" if has_pipe else f"{args.engines} is below 1"
            raise UserError(f"--engines: {why}; use --engines 1.")
        return min(args.engines, len(cameras))
    if len(cameras) < 2 or has_pipe or from_args(ModelChoice, args).device not in (None, "cuda"):
        return 1
    import torch

    return max(1, min(len(cameras), torch.cuda.device_count()))


def watch_on_several(args: argparse.Namespace, engines: int, fusion: Fusion, online: OnlineSettings, file: Any, stopped: Any) -> None:
    """The parent: until all engine processes have ended. Raises UserError where none of them could read anything."""
    context = multiprocessing.get_context("spawn")  # CUDA cannot be forked
    dealer, lock, stop = Dealer(engines), context.Lock(), context.Event()
    boxes = [context.Queue() for _ in range(engines)]
    seen: set[Camera] = set()

    def start(n: int, cameras: list[Camera]) -> Any:
        worker = context.Process(target=engine_process, args=(n, args, fusion, online, cameras, boxes[n], lock, stop), name=f"engine {n}")
        worker.start()
        return worker

    seen.update(file.cameras)
    workers = [start(n, cameras) for n, cameras in enumerate(dealer.deal(file.cameras))]
    questions, told = Questions(False), set()
    while any(worker.is_alive() for worker in workers):
        if stopped.wait(0.2):
            stop.set()
        for line in questions.take():
            for box in boxes:
                box.put(("question", line))
        if file.changed():
            for n, cameras in enumerate(dealer.deal(file.cameras)):
                if workers[n].is_alive():
                    boxes[n].put(("cameras", cameras))
                elif new := [camera for camera in cameras if camera not in seen]:  # it had nothing left to do
                    workers[n] = start(n, new)
            seen.update(file.cameras)
        for worker in workers:
            if worker.exitcode not in (None, 0) and worker not in told:
                told.add(worker)
                print(f"note: {worker.name} failed (see above); the streams of the others go on.", file=sys.stderr)
    codes = [worker.exitcode for worker in workers]
    if any(code not in (0, 2) for code in codes):
        raise RuntimeError(f"engine processes ended with {codes}; see above")
    if all(code == 2 for code in codes):
        raise UserError("none of the sources could be watched; see above.")


def engine_process(
    number: int,
    args: argparse.Namespace,
    fusion: Fusion,
    online: OnlineSettings,
    cameras: list[Camera],
    messages: Any,
    lock: Any,
    stop: Any,
) -> None:
    """One engine: the same watch as in one process, its questions and cameras from the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says when to stop
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    from aha.watch.command import settings_of, watch_here

    args.device = device_of(number, from_args(ModelChoice, args).device)
    inbox = Inbox(cameras, messages)
    stopped = threading.Event()

    def look() -> None:
        while not stopped.wait(0.2):
            if stop.is_set() or inbox.orphaned:
                stopped.set()

    threading.Thread(target=look, daemon=True).start()
    try:
        model = load_choice(from_args(ModelChoice, args))
        if model.is_demo and number == 0:
            print(f"note: {DEMO_NOTE}", file=sys.stderr)
        watch_here(args, model, settings_of(args, fusion, online), inbox, inbox, stopped, lock)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        leave_readers()
