"""index.html over the results of several videos: what was found in each, with its timeline, and what could not be done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from aha.core.clock import clock
from aha.core.files import read_json, write_text


def write_index(output: Path, answers: Sequence[tuple[Path, Path]], failed: Mapping[Path, str]) -> None:
    """answers: (video, folder of its files) in the order of the page; a folder without summary.json is left out. failed: {video: why}."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    rows = []
    for video, folder in answers:
        if not (folder / "summary.json").is_file():
            continue
        summary = read_json(folder / "summary.json", "summary")
        to = quote(os.fsencode(os.path.relpath(folder, output)))
        moments = [f"{clock(m['start'])} – {clock(m['end'])}" for m in sorted(summary["moments"], key=lambda m: m["rank"])]
        rows.append({"video": video.name, "to": to, "moments": moments[:6], "more": len(moments[6:]), "summary": summary,
                     "length": clock(summary["duration"]), "reel": summary["reel_seconds"],
                     "unclear": summary["evidence"] is not None and not summary["evidence"]["is_clear"],
                     "poster": (folder / "poster.jpg").is_file()})  # fmt: skip
    environment = Environment(loader=PackageLoader("aha.highlights", "."), autoescape=True, undefined=StrictUndefined)
    missing = [{"video": video.name, "why": why} for video, why in failed.items()]
    page = environment.get_template("index_template.html").render(rows=rows, missing=missing)
    write_text(output / "index.html", page)
