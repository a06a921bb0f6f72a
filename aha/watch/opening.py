"""From an address to the items of a feed, in the reading thread: opened there, tried again where it does not answer, and gone on with after
a restart."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aha.errors import UserError
from aha.watch.cameras import Camera
from aha.watch.clips import PacketRing
from aha.watch.feed import Feed, Item
from aha.watch.sources import (
    LONGEST_RETRY,
    Lost,
    Resumed,
    SourceFrame,
    camera_of,
    check_file,
    is_network,
    open_network,
    read_camera,
    read_file,
    read_pipe,
)

ENDLESS = 10**9  # attempts


@dataclass(frozen=True)
class Place:
    """Where a camera that goes on had got to. time: seconds of the last frame; wall: when that was (time.time). one_is_new: one of its
    streams has seen nothing, so that what can be read again is read from its beginning."""

    time: float
    wall: float
    one_is_new: bool = False


def place_of(state: dict[str, Any]) -> Place | None:
    """Of what was saved of a stream (Watch.take_out); None: it had seen no frame, so it begins where another would."""
    counters = state["watcher"]["counters"]
    return Place(counters["time"], state["wall"]) if counters["frames"] else None


def place_of_all(places: Sequence[Place | None]) -> Place | None:
    """Of a camera, from those of its streams: what can be read again is read from where the one that is furthest behind stands."""
    known = [place for place in places if place is not None]
    if not known:
        return None
    return replace(min(known, key=lambda place: place.time), one_is_new=len(known) < len(places))


def is_file(address: str) -> bool:
    return address != "-" and camera_of(address) is None and not is_network(address)


def check_source(address: str) -> None:
    """Raises UserError for a file that is not there."""
    if is_file(address):
        check_file(address)


def open_feed(
    camera: Camera, args: argparse.Namespace, side: int, several: bool, place: Place | None, wake, ring: PacketRing | None = None
) -> Feed:
    """The feed of a camera in pictures of `side` x `side` pixels. It opens the source in its thread; what fails there is `feed.error`."""
    from_file = is_file(camera.address)
    live = args.live if from_file or camera.address == "-" else True

    def items(feed: Feed) -> Iterator[Item]:
        if from_file:
            return _file(camera, args, side, place)
        if camera.address == "-":
            return _shifted(read_pipe(camera.frame_fps, args.raw_size, args.raw_fps, side, ring), place, camera.frame_fps, ring)
        if (device := camera_of(camera.address)) is not None:
            return _shifted(read_camera(device, camera.frame_fps, side, ring), place, camera.frame_fps, ring)
        return _network(camera, args, side, several, place, feed, ring)

    size = max(1, round(args.buffer_seconds * camera.frame_fps))
    return Feed(iter(()), size, live, from_file and args.live, wake=wake, open=items)


def _file(camera: Camera, args: argparse.Namespace, side: int, place: Place | None) -> Iterator[Item]:
    if place is None:
        yield from read_file(camera.address, camera.frame_fps, side, args.video_backend)
        return
    yield Resumed(0.0)
    start = None if place.one_is_new else (round(place.time * camera.frame_fps) + 1) / camera.frame_fps
    try:
        yield from read_file(camera.address, camera.frame_fps, side, args.video_backend, start=start)
    except UserError:
        from aha.video.reader import probe

        if start is None or start < probe(camera.address).duration:  # else it was killed after the last frame
            raise


def _network(
    camera: Camera, args: argparse.Namespace, side: int, several: bool, place: Place | None, feed: Feed, ring: PacketRing | None
) -> Iterator[Item]:
    attempts = args.reconnect_attempts if args.reconnect_attempts is not None else ENDLESS if several else 8
    failures = 0
    while True:
        try:
            items, feed.live = open_network(camera.address, camera.frame_fps, attempts, side, ring)
            break
        except UserError as error:  # several cameras: the others are watched while this one is tried again
            failures += 1
            if not several or failures >= attempts:
                raise
            wait = min(LONGEST_RETRY, 0.5 * 2 ** min(failures - 1, 10))
            yield Lost(str(error), wait)
            time.sleep(wait)
    if feed.live:
        yield from _shifted(items, place, camera.frame_fps, ring)
        return
    if place is not None:
        yield Resumed(0.0)
    seen = -math.inf if place is None or place.one_is_new else place.time + 1e-6
    yield from (item for item in items if not isinstance(item, SourceFrame) or item.time > seen)


def _shifted(items: Iterator[Item], place: Place | None, fps: float, ring: PacketRing | None) -> Iterator[Item]:
    """What cannot be read again goes on with the clock of the stream: the seconds that went by meanwhile are lost."""
    offset = None if place is not None else 0.0
    for item in items:
        if isinstance(item, SourceFrame):
            if offset is None and place is not None:
                ticks = max(1, math.ceil((time.time() - place.wall) * fps - 1e-6))
                offset = (round(place.time * fps) + ticks) / fps - item.time
                if ring is not None:
                    ring.offset = offset
                yield Resumed((ticks - 1) / fps)
            item = SourceFrame(item.image_CHW, item.time + (offset or 0.0), item.arrived)
        yield item
