"""Moving pictures for the demo: things of a colour and a pattern drift about at a place (grass, sea, sand, night, street).

A `Scene` is a few seconds at one place with the same things; `draw_frame` draws it at one moment. Words, pictures and their
truth (which thing lies where) all come from here, for pretraining (`aha.demo.pretrain`) and for the data set (`aha.demo.dataset`) alike.
Everything is drawn from a `numpy.random.Generator`: equal seeds give equal pixels.

Lengths are in pixels of the picture, time in seconds, angles in radians, colours RGB 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Hue (degrees), saturation and value of each colour word; every thing takes a shade near it. Places have dull colours, and black is the
# colour of letterbox bars.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.92, 0.85),
    "orange": (28, 0.98, 0.98),
    "yellow": (56, 0.90, 0.97),
    "green": (125, 0.85, 0.62),
    "blue": (220, 0.88, 0.88),
    "purple": (285, 0.75, 0.68),
    "white": (0, 0.00, 0.99),
}
PATTERNS = ("plain", "striped", "dotted", "checked")
PLACES = ("grass", "sea", "sand", "night", "street")
# Shapes are for variety: no word asks for one, since a tower this small is slow to learn them.
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PADDING = 6  # pixels that a thing keeps from the picture's border


@dataclass(frozen=True)
class Thing:
    """One object: its words, and how it looks and moves. Positions are fractions of the range in which it is whole."""

    colour: str
    pattern: str
    shape: str
    rgb: tuple[float, float, float]
    radius: float  # fraction of the picture's short side
    angle: float
    period: float  # pixels between two stripes or dots; squares of a check are three quarters of it
    start: tuple[float, float]  # x, y in 0..1
    velocity: tuple[float, float]  # pixels per second

    def centre(self, seconds: float, width: int, height: int) -> tuple[float, float]:
        """Centre in pixels at a moment; things bounce off the border."""
        centre = []
        for start, velocity, size in zip(self.start, self.velocity, (width, height)):
            margin = self.pixels(width, height) + PADDING
            free = max(size - 2 * margin, 1.0)
            way = (start * free + velocity * seconds) % (2 * free)
            centre.append(margin + (way if way <= free else 2 * free - way))
        return centre[0], centre[1]

    def pixels(self, width: int, height: int) -> float:
        """Radius in pixels."""
        return self.radius * min(width, height)


@dataclass(frozen=True)
class Scene:
    """Things at a place. `background_seed` makes the background; the things are drawn in order, the last one in front."""

    place: str
    background_seed: int
    things: tuple[Thing, ...]


def random_rgb(colour: str, random: np.random.Generator) -> tuple[float, float, float]:
    """A shade of a colour word."""
    hue, saturation, value = COLOURS[colour]
    hue = (hue + random.uniform(-7, 7)) % 360
    saturation = float(np.clip(saturation + (random.uniform(-0.12, 0.06) if saturation else 0.0), 0, 1))
    value = float(np.clip(value + random.uniform(-0.10, 0.06), 0, 1))
    return hsv_to_rgb(hue, saturation, value)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Hue in degrees, saturation and value in 0..1 -> RGB 0..255."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + hue / 60.0) % 6.0
        channels.append(255.0 * value * (1 - saturation * max(0.0, min(k, 4 - k, 1.0))))
    return channels[0], channels[1], channels[2]


def random_thing(random: np.random.Generator, colour: str | None = None, pattern: str | None = None) -> Thing:
    """A thing with the given words; words that are not given are drawn."""
    colour = colour or str(random.choice(list(COLOURS)))
    pattern = pattern or str(random.choice(PATTERNS))
    speed, heading = random.uniform(6, 36), random.uniform(0, 2 * np.pi)
    return Thing(
        colour=colour,
        pattern=pattern,
        shape=str(random.choice(SHAPES)),
        rgb=random_rgb(colour, random),
        radius=float(random.uniform(0.15, 0.27)),
        angle=float(random.uniform(-0.25, 0.25)),
        period=float(random.uniform(16, 22)),
        start=(float(random.uniform()), float(random.uniform())),
        velocity=(float(speed * np.cos(heading)), float(speed * np.sin(heading))),
    )


def random_scene(random: np.random.Generator, things: list[Thing], place: str | None = None) -> Scene:
    """The given things at a place (drawn if not given), over a new background, apart from each other at the start."""
    placed: list[Thing] = []
    for thing in things:
        candidates = [thing.__class__(**{**thing.__dict__, "start": (float(x), float(y))}) for x, y in random.uniform(size=(12, 2))]
        placed.append(max(candidates, key=lambda c: _clearance(c, placed)))
    place = place or str(random.choice(PLACES))
    return Scene(place=place, background_seed=int(random.integers(2**31)), things=tuple(placed))


def _clearance(candidate: Thing, placed: list[Thing]) -> float:
    """Smallest gap to the things already placed, in a 384 x 384 picture."""
    x, y = candidate.centre(0, 384, 384)
    gaps = [
        np.hypot(x - a, y - b) - candidate.pixels(384, 384) - other.pixels(384, 384)
        for other in placed
        for a, b in [other.centre(0, 384, 384)]
    ]
    return min([30.0, *gaps])


def draw_background(place: str, seed: int, width: int, height: int) -> np.ndarray:
    """A background [height, width, 3] float32, 0..255: the place's texture in shades and sizes of its own, lit unevenly."""
    random = np.random.default_rng(seed)
    if place == "grass":  # upright blades
        colour = (random.uniform(70, 105), random.uniform(0.30, 0.50), random.uniform(0.35, 0.55))
        texture = _stretched_noise(random, width, height, int(random.integers(3, 6)), int(random.integers(12, 30)))
    elif place == "sea":  # long level waves
        colour = (random.uniform(185, 205), random.uniform(0.25, 0.45), random.uniform(0.40, 0.60))
        texture = _stretched_noise(random, width, height, int(random.integers(30, 80)), int(random.integers(4, 9)))
    elif place == "sand":  # fine grain
        colour = (random.uniform(32, 45), random.uniform(0.22, 0.40), random.uniform(0.60, 0.78))
        texture = 0.5 + 0.5 * (_stretched_noise(random, width, height, 3, 3) - 0.5)
    elif place == "night":  # dark, with a few small lights
        colour = (random.uniform(215, 260), random.uniform(0.20, 0.50), random.uniform(0.14, 0.26))
        texture = 0.4 + 0.2 * _smooth_noise(random, 5, width, height)
    else:  # street: courses of bricks
        colour = (random.uniform(0, 360), random.uniform(0.0, 0.12), random.uniform(0.35, 0.60))
        texture = _bricks(random, width, height)
    light = _smooth_noise(random, int(random.integers(2, 5)), width, height)
    picture = np.asarray(hsv_to_rgb(*colour), np.float32) * ((0.72 + 0.45 * texture) * (0.8 + 0.4 * light))[..., None]
    if place == "night":
        y, x = random.integers(0, height - 2, 90), random.integers(0, width - 2, 90)
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            picture[y + dy, x + dx] = random.uniform(110, 210, (90, 1))
    return picture.astype(np.float32)


def _stretched_noise(random: np.random.Generator, width: int, height: int, across: int, down: int) -> np.ndarray:
    """Noise [height, width] in 0..1 in blocks of across x down pixels, each row of blocks shifted by itself."""
    rows, columns = height // down + 2, width // across + 3
    blocks = np.repeat(random.uniform(0, 1, (rows, columns)).astype(np.float32), across, 1)
    shifts = random.integers(0, across + 1, rows)
    lines = np.stack([block[shift : shift + width] for block, shift in zip(blocks, shifts)])
    return np.repeat(lines, down, 0)[:height]


def _bricks(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Bricks [height, width] in 0..1, dark joints between them, each course shifted by half a brick."""
    brick_w, brick_h = int(random.integers(34, 60)), int(random.integers(16, 26))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    course = y // brick_h
    column = (x + (course % 2) * (brick_w // 2)) // brick_w
    shade = random.uniform(0.45, 1.0, (height // brick_h + 1, width // brick_w + 3)).astype(np.float32)[course, column]
    joint = (y % brick_h < 3) | ((x + (course % 2) * (brick_w // 2)) % brick_w < 3)
    return np.where(joint, np.float32(-0.3), shade)


def _smooth_noise(random: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """Noise [height, width] in 0..1, bilinear between cells x cells random values."""
    grid = random.uniform(0, 1, (cells + 1, cells + 1)).astype(np.float32)
    y, x = np.linspace(0, cells - 1e-4, height, dtype=np.float32), np.linspace(0, cells - 1e-4, width, dtype=np.float32)
    y0, x0 = y.astype(int), x.astype(int)
    v, u = (y - y0)[:, None], (x - x0)[None, :]
    top = grid[y0][:, x0] * (1 - u) + grid[y0][:, x0 + 1] * u
    bottom = grid[y0 + 1][:, x0] * (1 - u) + grid[y0 + 1][:, x0 + 1] * u
    return top * (1 - v) + bottom * v


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape's border (negative inside), for coordinates in units of the radius. y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 0.92
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.74) - 0.22
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.80
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - 0.32, y - 0.95), np.maximum(x - 0.95, y - 0.32))
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(x) - 0.5 * y - 0.5, y - 0.55)
    # star: the five points are folded into one, whose edge is a straight line from the tip to the inner corner
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    tip, inner, half = 1.0, 0.45, np.pi / 5
    edge_x, edge_y = inner * np.cos(half) - tip, inner * np.sin(half)
    return (edge_y * (radius * np.cos(angle) - tip) - edge_x * radius * np.sin(angle)) / np.hypot(edge_x, edge_y)


def draw_frame(scene: Scene, seconds: float, width: int, height: int, background: np.ndarray | None = None) -> np.ndarray:
    """The scene at a moment (seconds from its start), uint8 [height, width, 3] RGB. `background` saves drawing it again for every frame."""
    if background is None:
        background = draw_background(scene.place, scene.background_seed, width, height)
    picture = background.astype(np.float32, copy=True)
    for thing in scene.things:
        _draw_thing(picture, thing, seconds)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _draw_thing(picture: np.ndarray, thing: Thing, seconds: float) -> None:
    height, width = picture.shape[:2]
    radius = thing.pixels(width, height)
    cx, cy = thing.centre(seconds, width, height)
    left, top = max(int(cx - radius) - 1, 0), max(int(cy - radius) - 1, 0)
    right, bottom = min(int(cx + radius) + 2, width), min(int(cy + radius) + 2, height)
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(cx)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(cy)
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u, v = cos * x + sin * y, cos * y - sin * x  # pixels, turned with the thing
    alpha = np.clip(0.5 - distance(thing.shape, u / np.float32(radius), v / np.float32(radius)) * np.float32(radius), 0, 1)[..., None]
    paint = np.asarray(thing.rgb, np.float32)
    if thing.pattern != "plain":
        wave, side = np.float32(2 * np.pi / thing.period), np.float32(0.75 * thing.period)
        if thing.pattern == "striped":
            ink = np.sin((u + v) * np.float32(wave * 0.7071)) > 0.15
        elif thing.pattern == "checked":
            ink = (np.floor(u / side) + np.floor(v / side)) % 2 == 0
        else:
            ink = np.cos(u * wave) + np.cos(v * wave) > 0.9
        paint = paint * np.where(ink, np.float32(0.25), np.float32(1.0))[..., None]
    window = picture[top:bottom, left:right]
    window += (paint - window) * alpha


def coverage(scene: Scene, seconds: float, width: int, height: int, size: int = 384, cells: int = 7) -> np.ndarray:
    """Share of each cell that shows each thing and, last, the bare place: float32 [things + 1, cells, cells], for the picture centred on
    a size x size square. A thing counts only where no other is in front of it."""
    steps = 4  # 4 x 4 sample points a cell
    points = (np.arange(cells * steps, dtype=np.float32) + 0.5) * (size / (cells * steps))
    x, y = points[None, :] - (size - width) / 2, points[:, None] - (size - height) / 2
    seen = np.zeros((len(scene.things) + 1, cells, cells), np.float32)
    free = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    for index in reversed(range(len(scene.things))):
        thing = scene.things[index]
        cx, cy = thing.centre(seconds, width, height)
        radius = thing.pixels(width, height)
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        u, v = (cos * (x - cx) + sin * (y - cy)) / radius, (cos * (y - cy) - sin * (x - cx)) / radius
        inside = (distance(thing.shape, u, v) < 0) & free
        free &= ~inside
        seen[index] = inside.reshape(cells, steps, cells, steps).mean((1, 3))
    seen[-1] = free.reshape(cells, steps, cells, steps).mean((1, 3))
    return seen


def letterbox(picture: np.ndarray, size: int = 384) -> np.ndarray:
    """The picture centred on a black size x size square, as the video reader gives it (for pictures whose long side is `size`)."""
    height, width = picture.shape[:2]
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
