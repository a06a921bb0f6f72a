"""One frame: upright, RGB, resized with its aspect kept and padded to a square; and the sources that are not videos (image files, arrays).

Dimensions in names: T frames, H height, W width, C channels (RGB).

The resize is bilinear without smoothing, with OpenCV's 11-bit fixed-point weights: what the published checkpoints were trained and scored
with. Written in numpy so that neither OpenCV nor torch is needed to read a video.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from llava_next import PUBLISHED
from PIL import Image, ImageOps

from aha.core.files import by_number
from aha.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_WEIGHT_BITS = 11  # fixed-point weights: 2048 is one


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each of `target` pixels along one axis: the two source pixels and their integer weights (out of 2048)."""
    # The scale is a double, the position a float32: the roundings of the original decide single grey levels.
    position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    left = np.floor(position).astype(np.int64)
    fraction = position - left.astype(np.float32)
    right = (left + 1).clip(0, source - 1)  # beyond the edge both are the edge pixel, whatever the weights
    left = left.clip(0, source - 1)
    right_weight = np.rint(fraction * (1 << _WEIGHT_BITS)).astype(np.int32)
    left_weight = np.rint((np.float32(1) - fraction) * (1 << _WEIGHT_BITS)).astype(np.int32)
    return left, right, left_weight, right_weight


@functools.lru_cache(maxsize=16)
def _resize_plan(source_height: int, source_width: int, height: int, width: int) -> tuple[np.ndarray, list, list]:
    """(source rows that are needed; [(columns of the flattened row, weights)] x 2; [(rows among the needed ones, weights)] x 2)."""
    top, bottom, top_weight, bottom_weight = _taps(source_height, height)
    left, right, left_weight, right_weight = _taps(source_width, width)
    rows, place = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    columns = [(taps[:, None] * 3 + np.arange(3)).ravel() for taps in (left, right)]
    across = [(columns[0], np.repeat(left_weight, 3)), (columns[1], np.repeat(right_weight, 3))]
    down = [(place[:height], top_weight[:, None]), (place[height:], bottom_weight[:, None])]
    return rows, across, down


def resize_bilinear(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of a uint8 image [H,W,3] to [height,width,3], pixel centres aligned, no smoothing on the way down."""
    rows, across, down = _resize_plan(*image_HWC.shape[:2], height, width)
    picked = image_HWC[rows].reshape(len(rows), -1)
    (columns, weights), (next_columns, next_weights) = across  # written out in place: twice as fast as a sum of expressions
    sums = np.take(picked, columns, axis=1) * weights
    sums += np.take(picked, next_columns, axis=1) * next_weights
    sums >>= 4  # 19 bits -> 15 bits, so that the product with the vertical weight stays in 32 bits
    (places, weights), (next_places, next_weights) = down
    upper, lower = sums[places], sums[next_places]
    upper *= weights
    upper >>= 16
    lower *= next_weights
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.astype(np.uint8).reshape(height, width, 3)


def letterbox(image_HWC: np.ndarray, size: int = PUBLISHED.side, pixel_aspect: float = 1.0) -> np.ndarray:
    """Scale the longer side to `size`, keep the aspect, centre on black: uint8 [H,W,3] -> uint8 [size,size,3].

    The shorter side is rounded down; of an odd rest the larger part goes below or to the right. An image that is already size x size
    is returned as it is. `pixel_aspect`: width of a stored pixel over its height (1 for square pixels).
    """
    height, width = image_HWC.shape[:2]
    if height == width == size and pixel_aspect == 1:
        return image_HWC
    shown_width = width * pixel_aspect
    if shown_width > height:
        new_width, new_height = size, max(1, int(height / shown_width * size))
    else:
        new_width, new_height = max(1, int(shown_width / height * size)), size
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resize_bilinear(image_HWC, new_height, new_width)
    return canvas


def turn_upright(image_HWC: np.ndarray, display_matrix: Sequence[int] | None) -> np.ndarray:
    """Apply a container's display matrix as quarter turns and flips.

    Its nine fixed-point numbers are a b u c d v x y w, with x' = a x + c y and y' = b x + d y. Other angles are left alone, as every
    player does.
    """
    if display_matrix is None:
        return image_HWC
    a, b, _, c, d = display_matrix[:5]
    if swaps_axes(display_matrix):
        image_HWC = image_HWC.transpose(1, 0, 2)
        a, d = c, b
    elif b or c:
        return image_HWC
    if a < 0:
        image_HWC = image_HWC[:, ::-1]
    if d < 0:
        image_HWC = image_HWC[::-1]
    return np.ascontiguousarray(image_HWC)


def swaps_axes(display_matrix: Sequence[int] | None) -> bool:
    """True where the display matrix turns the picture by 90 or 270 degrees."""
    return display_matrix is not None and display_matrix[0] == display_matrix[4] == 0 and display_matrix[1] != 0 != display_matrix[3]


def read_image(path: str | Path) -> np.ndarray:
    """Read one image file as uint8 RGB [H,W,3]: any mode (grey, palette, 16-bit, CMYK), alpha dropped, the EXIF orientation applied.

    Raises UserError, naming the file, where it is missing or no image.
    """
    with _image_errors(path), Image.open(path) as image:
        return _upright_rgb(image, path)


def decode_image(data: bytes, most_pixels: int) -> np.ndarray:
    """A JPEG or PNG as it was sent -> as read_image. Raises UserError where it is none or has more pixels."""
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")):
        raise UserError("the picture is neither JPEG nor PNG; send one of them.")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except Exception as error:  # it may be anything
        raise UserError("the picture is damaged from its beginning; send it again.") from error
    width, height = image.size
    if width * height > most_pixels:
        raise UserError(f"the picture has {width}x{height} pixels, more than {most_pixels:,}; send it smaller.")
    with _image_errors("that was sent"), image:
        return _upright_rgb(image, "that was sent")


def _upright_rgb(stored: Image.Image, path: str | Path) -> np.ndarray:
    image: Image.Image = ImageOps.exif_transpose(stored)
    if image.mode.startswith("I"):  # 16-bit grey: the upper byte, as for every other 16-bit format
        return np.repeat((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"image {path} has floating-point pixels, whose range is not known; save it with 8 or 16 bits.")
    return np.asarray(image.convert("RGB"))


def image_files(given: Sequence[str | Path]) -> list[Path] | None:
    """The images that stand for a video, one a frame: those given, in that order, or of one folder, by their numbers. None: no images but a
    video file. Raises UserError for a folder without images, for other files among images, and where sizes differ or one is no image."""
    paths = [Path(path) for path in given]
    if len(paths) == 1 and paths[0].is_dir():
        names = by_number(path.name for path in paths[0].iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not names:
            raise UserError(f"folder {paths[0]} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give a video file or such a folder.")
        paths = [paths[0] / name for name in names]
    elif len(paths) == 1 and paths[0].suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if other := [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]:
        raise UserError(f"{other[0]} is no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give one video file, or images only.")
    sizes = {path: image_size(path) for path in paths}
    first = sizes[paths[0]]
    if odd := [path for path in paths if sizes[path] != first]:
        (width, height), (other_width, other_height) = first, sizes[odd[0]]
        raise UserError(
            f"images of one video must have one size, but {paths[0]} is {width}x{height} and {odd[0]} is {other_width}x{other_height}; "
            "scale them, or leave out what does not belong there."
        )
    return paths


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, from the image's header. Raises UserError as read_image does."""
    with _image_errors(path), Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112, 1) >= 5 else (width, height)  # orientations 5 to 8 lie on their side


@contextlib.contextmanager
def _image_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"image {path} does not exist; check the path.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}); save it again as PNG or JPEG.") from error


def check_array(frames: np.ndarray) -> np.ndarray:
    """uint8 [T,H,W,3] or [T,3,H,W] -> [T,H,W,3] (a view). Raises UserError for any other shape or type, and for no frame."""
    if frames.dtype != np.uint8:
        raise UserError(f"an array of frames must have dtype uint8 (0..255), not {frames.dtype}; convert it first.")
    if frames.ndim != 4 or (frames.shape[-1] != 3 and frames.shape[1] != 3):
        raise UserError(f"an array of frames must have shape [T,H,W,3] or [T,3,H,W], not {list(frames.shape)}; add or move the axes.")
    if 0 in frames.shape:
        raise UserError(f"an array of frames of shape {list(frames.shape)} holds no pixels; give at least one frame.")
    return frames if frames.shape[-1] == 3 else frames.transpose(0, 2, 3, 1)
