"""What .ci/run stands on: a part ends with all that it started, and the last lines say what failed and what nobody ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
from paths import REPO

CI = REPO / ".ci"


def bounded(minutes: float, *command: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(CI / "bounded.py"), str(minutes), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


def running(marker: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or [])]


def test_nothing_that_a_part_started_is_left(tmp_path):
    """A child in a session of its own, whose parent is gone: the group of the part does not hold it."""
    begun = tmp_path / "begun"
    orphan = f"(setsid bash -c 'sleep 1000 & touch {begun}; wait' {tmp_path.name} &); until [ -e {begun} ]; do sleep 0.05; done"
    done = bounded(1, "bash", "-c", f"{orphan}; exit 3")
    assert done.returncode == 3 and "left running, killed: bash, sleep (2)" in done.stdout, done.stdout + done.stderr
    assert not running(tmp_path.name)


def test_a_part_finds_its_orphans_ended(tmp_path):
    """Whoever asks with kill -0 whether an orphan lives takes a zombie for alive."""
    script = f"(sleep 0.1 & echo $! >{tmp_path}/pid); while kill -0 $(cat {tmp_path}/pid) 2>/dev/null; do sleep 0.05; done"
    assert bounded(1, "bash", "-c", script).returncode == 0


def test_a_part_that_does_not_end_is_asked_where_it_is_and_killed(tmp_path):
    hangs = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('in the middle of test_one')"  # as pytest does
    script = f"(setsid bash -c 'trap : INT; sleep 600; sleep 600' {tmp_path.name} &); '{sys.executable}' -c \"{hangs}\""
    done = bounded(0.05, "bash", "-c", script)
    assert done.returncode == 124 and "not over after 0.05 minutes, killed" in done.stdout
    assert "in the middle of test_one" in done.stdout, done.stdout + done.stderr
    assert not running(tmp_path.name)


def case(module: str, name: str, inside: str = "") -> str:
    return f'<testcase classname="{module}" name="{name}" time="0.1">{inside}</testcase>'


def skip(reason: str) -> str:
    return f'<skipped type="pytest.skip" message="{reason}">somewhere</skipped>'


def module_skip(module: str, reason: str) -> str:
    return case("", module, f"<skipped message=\"collection skipped\">('/a/test_x.py', 17, 'Skipped: {reason}')</skipped>")


def write_part(folder: Path, part: str, code: int, seconds: int, log: str, *cases: str) -> None:
    (folder / f"{part}.log").write_text(log)
    if cases:
        (folder / f"{part}.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    with (folder / "parts").open("a") as parts:
        parts.write(f"{part} {code} {seconds}\n")


def tally(folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, str(CI / "tally.py"), str(folder)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()


def test_the_sum_counts_each_test_once_and_names_what_nobody_ran(tmp_path):
    write_part(
        tmp_path, "light", 0, 90, "3 passed, 4 skipped",
        case("test.test_a", "test_one"), case("test.test_a", "test_two", skip("no Java")), case("test.test_g", "test_card[0]", skip("needs a GPU")),
        case("test.test_g", "test_card[1]", skip("needs a GPU")), module_skip("test.test_ray", "no ray"), module_skip("test.test_gone", "no gone"),
        case("test.test_a", "test_known", '<skipped type="pytest.xfail" message="known" />'),
    )  # fmt: skip
    write_part(tmp_path, "types", 0, 30, "Success\n1 passed\n")
    write_part(
        tmp_path, "optional", 0, 60, "3 passed", case("test.test_a", "test_one"), case("test.test_a", "test_two"), case("test.test_ray", "test_r"),
    )  # fmt: skip
    write_part(tmp_path, "browser", 75, 6, "these Debian packages cannot be installed here: chromium\n")
    code, lines = tally(tmp_path)
    assert code == 0 and lines == [
        "light         1.5 min  ok",
        "types         0.5 min  ok",
        "optional      1.0 min  ok",
        "browser       0.1 min  NOT RUN: these Debian packages cannot be installed here: chromium",
        "together      3.1 min",
        "skipped, and run by no part: test/test_g.py, 2: needs a GPU",
        "skipped, and run by no part: test/test_gone.py, 1: no gone",
        "5 passed, 0 failed, 4 skipped",
    ]


def test_the_last_lines_say_which_test_failed(tmp_path):
    write_part(
        tmp_path, "light", 1, 60, "1 failed", case("test.test_a", "test_one[x]", '<failure message="assert 1 == 2&#10;more">trace</failure>'),
        case("test.test_a", "test_two", '<error message="at set-up">trace</error>'), case("test.test_a", "test_three"),
    )  # fmt: skip
    write_part(tmp_path, "wheel", 1, 60, "a\nno such package\n")
    hung = '  File "test_b.py", line 45 in test_that_hangs'
    write_part(tmp_path, "mutated", 124, 1500, "\n".join([hung, *"abcdefgh", "KeyboardInterrupt"]))
    code, lines = tally(tmp_path)
    assert code == 1 and lines == [
        "light         1.0 min  FAILED (1)",
        "           FAILED test/test_a.py::test_one[x] - assert 1 == 2",
        "           FAILED test/test_a.py::test_two - at set-up",
        "wheel         1.0 min  FAILED (1)",
        "           a",
        "           no such package",
        "mutated      25.0 min  FAILED (124)",
        f"           {hung}",
        *(f"           {line}" for line in [*"bcdefgh", "KeyboardInterrupt"]),
        "together     27.0 min",
        "1 passed, 4 failed, 0 skipped",
    ]
