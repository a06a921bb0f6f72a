"""Is this interpreter an environment that can run the project? `python scripts/check_environment.py`

Exit code 0 if it is a virtual or conda environment with every package of pyproject.toml, with what the scripts and the tests need beside
them (the extras train, web, serve and dev), at or above its lower bound; else 1 and a line for each thing that is missing. Standard library
only: it runs before anything is installed.
"""

import importlib.metadata
import os
import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("train", "web", "serve", "dev")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def wanted() -> list[tuple[str, str]]:
    """(package, lowest version) of pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [re.fullmatch(r"([\w.-]+)>=([\w.]+)", line).groups() for line in requirements]


def main() -> int:
    problems = []
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        problems.append("no virtual or conda environment is active")
    for name, lowest in wanted():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is missing")
            continue
        if numbers(found) < numbers(lowest):
            problems.append(f"{name} {found} is older than {lowest}")
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
