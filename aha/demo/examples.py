"""Two small videos of coloured shapes, drawn when they are needed: what the embedded demo model knows (the page, the notebook)."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from aha.demo.scenes import draw_background, draw_frame, random_scene, random_thing

FPS, SECONDS = 10, 5  # frames a second, seconds of a scene
# A list of examples shows the first picture, so what is asked for comes first.
EXAMPLES = (
    ("red things", ("red", "blue", "green", "yellow", "red", "purple"), "All the red things in one video"),
    ("blue things", ("blue", "orange", "green", "white", "blue", "red"), "Everything blue: a collection"),
)


def write_example(folder: Path, number: int = 0) -> tuple[str, str]:
    """Write one of EXAMPLES into `folder` -> (path, what to ask)."""
    name, colours, query = EXAMPLES[number]
    path = folder / f"{name.replace(' ', '_')}.mp4"
    random = np.random.default_rng(1000 + number)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "26", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 384, 288, "yuv420p"
        for colour in colours:
            scene = random_scene(random, [random_thing(random, colour=colour), random_thing(random, colour=colour)])
            background = draw_background(scene.place, scene.background_seed, 384, 288)
            for k in range(FPS * SECONDS):
                picture = draw_frame(scene, k / FPS, 384, 288, background)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return str(path), query


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """All of them."""
    return [write_example(folder, number) for number in range(len(EXAMPLES))]
