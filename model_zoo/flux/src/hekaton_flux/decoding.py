"""Files of images to pixels of one size; those that cannot be used are named, and skipped up to a limit."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hekaton.errors import DataError
from hekaton_flux.images import Pixels, StoredImage

log = logging.getLogger("hekaton")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of the files that are taken for images."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Of what is in these files, whatever they are called. Pillow knows more, and for some, such as EPS, it runs
other programs on the file."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Of the orientations of EXIF, what makes an image upright."""
_SHOWN = 5
_LONGEST = 8
"""Of the longer side of an image, how many times the shorter one is scaled."""


class BadImages:
    """The images of a dataset that this process could not use."""

    def __init__(self, limit: int) -> None:
        """:param limit: ``flow_matching.max_bad_images``."""
        self._limit = limit
        self._found: dict[str, str] = {}

    def add(self, where: str, reason: str) -> None:
        """:raises DataError: for one more than the limit, naming the first of them."""
        if where in self._found:
            return
        self._found[where] = reason
        if len(self._found) > self._limit:
            raise DataError(
                f"{where}: {reason}",
                hint=_too_many(self._limit, [f"{place}: {why}" for place, why in self._found.items()]),
            )
        log.warning("skipping %s: %s", where, reason)


def check_captions(missing: Sequence[str], limit: int, *, what: str) -> None:
    """Images without a caption are found before a run starts.

    :param missing: where each is.
    :raises DataError: for more than ``limit``.
    """
    if not missing:
        return
    text = f"{what}: {len(missing):,} image(s) without a caption: {', '.join(missing[:_SHOWN])}"
    text += f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    if len(missing) > limit:
        raise DataError(text, hint=_too_many(limit, []))
    log.warning("skipping %s", text)


def _too_many(limit: int, found: Sequence[str]) -> str:
    lines = [f"flow_matching.max_bad_images = {limit} lets so many be skipped"]
    return "\n".join([*found[:_SHOWN], *lines] if limit else lines)


class Unusable(Exception):
    """An image that cannot be trained on; the message is the reason."""


def pixels_of(image: StoredImage, *, size: int, enlarge: bool) -> Pixels:
    """An image, upright as its EXIF data says, scaled so that its shorter side has ``size`` pixels, and the
    middle of it: (size, size, 3). Of an animation it is the first image.

    :param enlarge: whether smaller images are scaled up.
    :raises Unusable: for one that cannot be read, or is smaller.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image.data), formats=_FORMATS) as opened:
                width, height = opened.size
                if not enlarge and min(width, height) < size:
                    raise Unusable(f"it has {width} by {height} pixels, fewer than {size} by {size}")
                # JPEG decodes at half or a quarter of its size where that suffices.
                opened.draft("RGB", (size, size) if min(width, height) >= 2 * size else opened.size)
                whole = _without_alpha(_upright(opened))
    except Unusable:
        raise
    except UnidentifiedImageError as e:  # of which the message has the address of its buffer
        raise Unusable(f"it cannot be read as an image: it is none of {', '.join(_FORMATS)}") from e
    except (
        OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as e:  # fmt: skip
        raise Unusable(f"it cannot be read as an image: {e}") from e
    whole = _middle(whole)
    width, height = whole.size
    factor = size / min(width, height)
    scaled = (max(size, round(width * factor)), max(size, round(height * factor)))
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    resized = whole if whole.size == scaled else whole.resize(scaled, Image.Resampling.LANCZOS)
    return np.asarray(resized.crop((left, top, left + size, top + size)), np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """An image as its EXIF data says that the camera was held."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _middle(image: Image.Image) -> Image.Image:
    """An image without the ends of its longer side that are far from the square in its middle: scaled up,
    those of a very long one would need gigabytes."""
    width, height = image.size
    longest = _LONGEST * min(width, height)
    across, down = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((across, down, width - across, height - down)) if across or down else image


def _without_alpha(image: Image.Image) -> Image.Image:
    """As RGB, what is transparent on white."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
