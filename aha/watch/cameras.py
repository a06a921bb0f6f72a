"""Which streams are watched: the sources of the command line, or a file of cameras.

    [[camera]]
    name = "door"                                   # default: taken from the address
    address = "rtsp://user:password@10.0.0.7/live"  # as a SOURCE of `aha watch`
    queries = ["someone falls", "a parcel"]         # default: --query; each is a stream of its own, of the same frames
    frame_fps = 1.0                                 # default: --frame_fps
    on_event = ["https://example.org/hook", "mqtt://broker/aha", "jsonl:door.jsonl", "command:./notify.sh"]  # default: --on_event
    max_alerts_per_hour = 4                         # default: --max_alerts_per_hour

Raises UserError, one sentence for what is wrong.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aha.api import checked_query, queries_of
from aha.core.addresses import shown_address
from aha.core.files import read_text
from aha.errors import UserError

LONGEST_NAME = 80
KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "address": str,
    "queries": list,
    "frame_fps": (int, float),
    "on_event": list,
    "max_alerts_per_hour": (int, float),
}


@dataclass(frozen=True)
class Camera:
    """One source. queries: (None,) where nothing was asked yet. on_event: receivers (aha.watch.receivers)."""

    name: str
    address: str
    queries: tuple[str | None, ...] = (None,)
    frame_fps: float = 2.0
    on_event: tuple[str, ...] = ()
    max_alerts_per_hour: float | None = None

    @property
    def streams(self) -> int:
        return len(self.queries)

    @property
    def load(self) -> float:
        """Frames a second that the engine has to score."""
        return self.frame_fps * self.streams


def cameras_of(
    sources: Sequence[str], query: str | None, frame_fps: float, on_event: Sequence[str] = (), max_alerts: float | None = None
) -> list[Camera]:
    """The cameras of a command line."""
    queries = (None if query is None else checked_query(query),)
    names = unique([name_of(source) for source in sources])
    if sources.count("-") > 1:
        raise UserError("standard input (-) can be watched once.")
    return [Camera(name, source, queries, frame_fps, tuple(on_event), max_alerts) for name, source in zip(names, sources)]


def read_cameras(
    path: str | Path, query: str | None, frame_fps: float, on_event: Sequence[str] = (), max_alerts: float | None = None
) -> list[Camera]:
    """The cameras of a file; what an entry leaves out is as on the command line."""
    try:
        tree = tomllib.loads(read_text(path, "camera file"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"camera file {path} is not valid TOML ({error}); repair it.") from error
    entries = tree.pop("camera", None)
    if tree or not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        unknown = f"the unknown key {next(iter(tree))!r}" if tree else "no [[camera]]"
        raise UserError(f"camera file {path} has {unknown}; it holds one [[camera]] table for each camera and nothing else.")
    defaults = {"queries": None if query is None else [query], "frame_fps": frame_fps, "on_event": list(on_event)}
    cameras = [_camera(entry, {**defaults, "max_alerts_per_hour": max_alerts}, f"{path}: camera {n}") for n, entry in enumerate(entries, 1)]
    names = [camera.name for camera in cameras]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"camera file {path} has two cameras named {name!r}; names tell their events apart, give each its own.")
    if sum(camera.address == "-" for camera in cameras) > 1:
        raise UserError(f"camera file {path} names standard input (-) twice; it can be watched once.")
    return cameras


def _camera(entry: dict[str, Any], defaults: dict[str, Any], where: str) -> Camera:
    for key, value in entry.items():
        if key not in KEYS:
            raise UserError(f"{where} has the unknown key {key!r}; known are {', '.join(KEYS)}.")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}, of the wrong kind; see aha watch --help.")
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise UserError(f"{where}: {key} is a list of texts, not {value!r}.")
    if not entry.get("address", "").strip():
        raise UserError(f"{where} has no address; give the file, camera, rtsp:// or http:// address that is to be watched.")
    values = {**defaults, **entry}
    name = values.get("name", name_of(values["address"])).strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or ":" in name:
        raise UserError(f"{where}: the name {name[:100]!r} must have 1 to {LONGEST_NAME} printable characters and no colon.")
    for key in ("frame_fps", "max_alerts_per_hour"):
        if values[key] is not None and not 0 < values[key] < math.inf:
            raise UserError(f"{where}: {key} must be above 0, not {values[key]}.")
    try:
        queries = (None,) if values["queries"] is None else tuple(queries_of(values["queries"]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not queries:
        raise UserError(f"{where} has an empty list of queries; say what to look for.")
    budget = None if values["max_alerts_per_hour"] is None else float(values["max_alerts_per_hour"])
    return Camera(
        name,
        values["address"].strip(),
        queries,
        float(values["frame_fps"]),
        tuple(values["on_event"]),
        budget,
    )


def name_of(address: str) -> str:
    """A short name of an address, without secrets: the last part of its path, or its host."""
    if address == "-":
        return "stdin"
    parts = [part for part in re.split(r"[/\\:]+", shown_address(address)) if part]
    return (parts[-1] if parts else "stream")[:LONGEST_NAME]


def unique(names: Sequence[str]) -> list[str]:
    """The same names; one that comes again gets a number."""
    taken: set[str] = set()
    result = []
    for name in names:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        result.append(free)
    return result


def slug(name: str) -> str:
    """A name as a name of a file: different names give different ones."""
    return re.sub(r"[^A-Za-z0-9._-]", lambda match: f"%{ord(match[0]):x}", name).lstrip(".") or "_"


def same_stream(one: Camera, other: Camera) -> bool:
    """Whether the state of one can go on as the other: everything but where events go and how many."""
    changed = [entry.name for entry in fields(Camera) if getattr(one, entry.name) != getattr(other, entry.name)]
    return set(changed) <= {"on_event", "max_alerts_per_hour"}
