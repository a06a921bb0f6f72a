"""Headless Chromium for tests. One that hangs fails its test and says so; nothing of it outlives the test, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from page_client import Page

from aha.core.environment import die_with_parent

SECONDS = 110.0  # that a test may have its browsers; with six runnable processes a core the longest took 42
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
    "disable-sync", "window-size=1300,1400",
    "remote-debugging-pipe",  # a browser whose driver dies ends, too
)  # fmt: skip


@contextmanager
def chromium(folder: Path, seconds: float = SECONDS) -> Iterator[Callable[[], tuple[Page, Path]]]:
    """A function that opens one more browser and gives its page and its folder of downloads; each has a profile of its own below `folder`.
    After `seconds` all of them are killed: what waits for one fails then."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium chromium-driver)")
    services: list = []
    late, over = threading.Event(), threading.Event()

    def kill_all() -> None:
        for service in list(services):
            if service.process is not None:
                kill_session(service.process.pid)

    def watch() -> None:
        if over.wait(seconds):
            return
        late.set()
        while not over.wait(0.5):  # one that is begun meanwhile, too
            kill_all()

    def open_one() -> tuple[Page, Path]:
        number = len(services)
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"user-data-dir={folder / f'profile{number}'}"):
            options.add_argument(f"--{flag}")
        downloads = folder / f"downloads{number}"
        downloads.mkdir()
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        # a session of its own: by its number all that belongs to the browser is found
        service = webdriver.ChromeService(driver, popen_kw={"start_new_session": True, "preexec_fn": die_with_parent})
        service.process = None
        services.append(service)
        return Page(webdriver.Chrome(options=options, service=service)), downloads

    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        yield open_one
    finally:
        over.set()
        watchdog.join()
        kill_all()
        if late.is_set():
            pytest.fail(f"Chromium was killed after {seconds:g} s: it hung, or the page never showed what was waited for")


def session_of(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_session(leader: int) -> None:
    while processes := session_of(leader):  # again for those that were begun meanwhile
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
