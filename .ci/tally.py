"""What the parts of .ci/run found: a line for each, what failed, what no part ran, and the sum.   python .ci/tally.py FOLDER

FOLDER holds, of each part, PART.log (what it printed), PART.xml where it ran pytest (the JUnit report), and a line `PART CODE SECONDS` of
`parts`. A test that several parts ran counts once, and is skipped only where all of them skipped it. Steps that are no tests are counted by
the line `N passed` that ends their part. Exit code 1 if anything failed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

NOT_RUN = 75  # the exit code of a part that lacks a Debian package (EX_TEMPFAIL)
LAST_LINES = 8  # of a part that failed without a failing test

Test = tuple[str, str]  # module, name; the name is empty where the whole module is meant


def read(report: Path) -> tuple[set[Test], dict[Test, str], dict[Test, str]]:
    """Tests that passed, that failed and that were skipped; the last two with the reason."""
    passed, failed, skipped = set(), {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        test = (module, name) if module else (name, "")  # pytest names a module that could not be collected so
        outcomes = {child.tag: child for child in case}
        if wrong := [outcomes[tag] for tag in ("failure", "error") if tag in outcomes]:
            failed[test] = wrong[0].get("message", "").split("\n")[0]
        elif "skipped" in outcomes and outcomes["skipped"].get("type") != "pytest.xfail":
            # of a whole module pytest writes a tuple with the reason at its end
            module_reason = re.search(r"Skipped: (.*)['\"]\)$", outcomes["skipped"].text or "", re.S) if not module else None
            skipped[test] = module_reason[1] if module_reason else outcomes["skipped"].get("message", "")
        else:
            passed.add(test)
    return passed, failed, skipped


def main(folder: Path) -> int:
    ran: set[Test] = set()
    failed: set[Test] = set()
    skipped: dict[Test, str] = {}
    steps = wrong = not_run = 0
    together = 0.0
    for line in (folder / "parts").read_text().splitlines():
        part, code, seconds = line.split()
        log, report = (folder / f"{part}.log").read_text(errors="replace").splitlines(), folder / f"{part}.xml"
        said: list[str] = []
        if report.is_file():
            passed, bad, left = read(report)
            ran |= passed | bad.keys()
            failed |= bad.keys()
            skipped |= left
            said = [f"FAILED {module.replace('.', '/')}.py::{name} - {reason}" for (module, name), reason in bad.items()]
        elif code == "0":
            steps += sum(int(count) for count in re.findall(r"^(\d+) passed$", "\n".join(log[-1:]), re.M))
        state = "ok" if code == "0" else f"FAILED ({code})"
        if int(code) == NOT_RUN:
            state, not_run = f"NOT RUN: {log[-1] if log else ''}", not_run + 1
        elif code != "0" and not said:
            wrong += 1
            stuck = [one for one in log[:-LAST_LINES] if re.search(r"line \d+ in test_", one)]  # pytest's word on a test that takes long
            said = [*stuck[-2:], *log[-LAST_LINES:]]
        print(f"{part:<10} {float(seconds) / 60:6.1f} min  {state}")
        print(*(f"{'':11}{one}"[:300] + "\n" for one in said), sep="", end="")
        together += float(seconds)
    print(f"{'together':<10} {together / 60:6.1f} min")
    modules = {module for module, _ in ran}
    nowhere = {test: why for test, why in skipped.items() if test not in ran and not (test[1] == "" and test[0] in modules)}
    for (module, reason), count in sorted(Counter((module, reason) for (module, _), reason in nowhere.items()).items()):
        print(f"skipped, and run by no part: {module.replace('.', '/')}.py, {count}: {reason}")
    print(f"{len(ran - failed) + steps} passed, {len(failed) + wrong} failed, {len(nowhere) + not_run} skipped")
    return int(bool(failed) or wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
