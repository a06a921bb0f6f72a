"""What `pip install` leaves out unless it is asked for: the extras of pyproject.toml, and the one sentence where something needs one."""

from __future__ import annotations

import importlib.util

from aha.errors import UserError


def installed(module: str) -> bool:
    """Is the top-level module `module` there? It is not imported."""
    return importlib.util.find_spec(module) is not None


def install_line(extra: str) -> str:
    return f"pip install 'aha-video[{extra}]'"


def need(module: str, extra: str, what: str) -> None:
    """Raises UserError where `module` is not installed: which thing needs it, and which extra of this package brings it."""
    if not installed(module):
        raise UserError(f"{what} needs the package {module}, which is not installed: {install_line(extra)}.")
