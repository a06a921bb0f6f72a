"""The browsers of a test end with it: one that hangs, one whose driver was killed, those of a test that failed and of a pytest that was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from chromium import chromium, session_of
from page_client import wait_for
from paths import REPO

pytestmark = pytest.mark.slow  # .ci/run browser runs them
SPIN = "data:text/html,<p id=here>here</p><script>setTimeout(() => { for (;;); }, 500)</script>"  # a renderer that takes a whole core


def browsers_of(folder: Path) -> list[psutil.Process]:
    """Processes that were begun with a profile below this folder, whatever became of their parents."""
    return [process for process in psutil.process_iter(["cmdline"]) if any(str(folder) in word for word in process.info["cmdline"] or [])]


def test_a_browser_that_hangs_fails_its_test_and_is_gone(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="killed after 10 s: it hung"), chromium(tmp_path, seconds=10) as open_one:
        page, _ = open_one()
        page.open(SPIN, "#here")
        time.sleep(1)
        assert len(browsers_of(tmp_path)) > 3
        page.text()  # is never answered
    assert not browsers_of(tmp_path)


def test_all_browsers_of_a_test_that_fails_are_gone(tmp_path):
    with pytest.raises(ZeroDivisionError), chromium(tmp_path) as open_one:
        (first, _), (second, _) = open_one(), open_one()
        first.open(SPIN, "#here")
        first.browser.service.process.kill()  # what is left of this one is nobody's child
        second.open("data:text/html,<p id=here>here</p>", "#here")
        leaders = [page.browser.service.process.pid for page in (first, second)]
        raise ZeroDivisionError
    assert not browsers_of(tmp_path) and not any(session_of(leader) for leader in leaders)


def test_a_browser_of_a_pytest_that_is_killed_ends(tmp_path):
    script = "import sys, time; from pathlib import Path; from chromium import chromium\n"
    script += "with chromium(Path(sys.argv[1])) as open_one: open_one(); print('open', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=REPO / "test", stdout=subprocess.PIPE, text=True)
    try:
        if "open" not in (process.stdout.readline() if process.stdout else ""):
            process.wait()
            pytest.skip("no browser here, or no selenium")
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not browsers_of(tmp_path))
