"""The thread in which the engine of `aha serve` runs.

    engine = Engine(lambda emit, seen: Watch(...))     # built in the thread; what building raises is raised here
    future = engine.call(lambda watch: watch.ask_one("door", "what was that?"))
    engine.close()

This thread alone touches the watch: what others want of it waits in a queue, which the thread looks at in each of its rounds.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from aha.errors import UserError
from aha.watch.engine import Stream, Watch

TURN_SECONDS = 0.02  # that the work of others may take before the frames have their turn again
Answer = TypeVar("Answer")
Emit = Callable[[dict[str, Any], Stream], None]
Seen = Callable[[Stream, float, float, np.ndarray], None]


class Refused(UserError):
    """A request that cannot be fulfilled now; `status` is that of HTTP."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Engine:
    """The thread in which the watch runs. make(emit, seen) builds it there. Raises what that raises."""

    def __init__(self, make: Callable[[Emit, Seen], Watch]):
        self.emit: Emit = lambda event, stream: None
        self.seen: Seen = lambda stream, seconds, score, image_CHW: None
        self.failed: Callable[[], None] = lambda: None  # called, in the thread, where the watch ends with an error
        self.error: Exception | None = None
        self._work: queue.SimpleQueue[tuple[Callable[[Watch], Any], Future[Any]]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._over = False
        made: Future[Watch] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="aha-serve-engine", daemon=True)
        self._thread.start()
        self.watch = made.result()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def call(self, work: Callable[[Watch], Answer]) -> Future[Answer]:
        """Have `work` done by the thread, soon."""
        future: Future[Answer] = Future()
        self._work.put((work, future))
        self.watch.changed.set()
        if self._over:
            self._refuse_all()
        return future

    def close(self) -> None:
        """The end of all streams, and of the thread."""
        self._stopped.set()
        self.watch.changed.set()
        self._thread.join()

    def _run(self, make: Callable[[Emit, Seen], Watch], made: Future[Watch]) -> None:
        try:
            watch = make(lambda *told: self.emit(*told), lambda *told: self.seen(*told))
        except BaseException as error:  # noqa: BLE001 (raised where the engine is made)
            made.set_exception(error)
            return
        made.set_result(watch)
        try:
            watch.run(self._stopped, functools.partial(self._do, watch))
        except Exception as error:  # noqa: BLE001 (told in full, and the server ends)
            self.error = error
            traceback.print_exc()
            self.failed()
        finally:
            self._over = True
            self._refuse_all()

    def _do(self, watch: Watch) -> bool:
        """What waits to be done; where it takes longer than TURN_SECONDS the frames have their turn first."""
        watch.failures.clear()  # what the command line wants to know at its end
        watch.complete.clear()
        until = time.monotonic() + TURN_SECONDS
        while not self._work.empty() and time.monotonic() < until:
            work, future = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue  # who asked has left
            try:
                future.set_result(work(watch))
            except Exception as error:  # noqa: BLE001 (raised where it was asked for)
                future.set_exception(error)
        return True

    def _refuse_all(self) -> None:
        while not self._work.empty():
            _, future = self._work.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(Refused(503, "the server is ending; try again later."))
