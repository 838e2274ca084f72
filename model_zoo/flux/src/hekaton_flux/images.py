"""Images with their texts, and the embedded datasets of them: drawn shapes with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.data.identity import fingerprint
from hekaton.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

COLORS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 205, 45),
    "purple": (150, 60, 180), "white": (240, 240, 240),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (32, 32, 32)
TRAINING, VALIDATION = 10_000, 500
"""How many images the datasets have."""


@dataclass(frozen=True)
class CaptionedImage:
    """:param pixels: (height, width, 3), red, green and blue from 0 to 255."""

    pixels: Pixels
    text: str


@dataclass(frozen=True)
class StoredImage:
    """An image as a file has it.

    :param data: of a JPEG, PNG or WebP file.
    :param where: for messages.
    """

    data: bytes
    text: str
    where: str


@dataclass(frozen=True)
class EncodedImage:
    """What the frozen encoders gave for an image and its text, see ``encoders.FrozenEncoders``."""

    latents: Floats
    latents_std: Floats
    text: Floats
    pooled: Floats


def draw(color: str, shape: str, *, size: int, center: tuple[float, float], radius: float) -> Pixels:
    """A shape on a dark background.

    :param size: height and width of the image.
    :param center: column and row of the middle of the shape, as shares of ``size``, and so is ``radius``.
    :returns: (size, size, 3)
    """
    middles = (np.arange(size) + 0.5) / size
    x, y = (middles[None, :] - center[0]) / radius, (middles[:, None] - center[1]) / radius
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.85,
        "triangle": (y <= 0.8) & (abs(x) <= (y + 1) * 0.55),
    }[shape]
    return np.where(inside[..., None], np.array(COLORS[color], np.uint8), np.array(BACKGROUND, np.uint8))


class Shapes:
    """Captions such as "a red circle"; color, shape, place and size of an image follow from its index."""

    def __init__(self, name: str, *, count: int, image_size: int) -> None:
        """:param name: with the index it determines what is drawn."""
        self._name, self._count, self._size = name, count, image_size
        self.fingerprint = fingerprint(f"{name} {count} {image_size} 2".encode())

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Sequence[int]) -> list[CaptionedImage]:
        return [self._drawn(index) for index in indices]

    def _drawn(self, index: int) -> CaptionedImage:
        digest = fingerprint(f"{self._name} {index}".encode())
        random = np.random.Generator(np.random.PCG64(int(digest[:16], 16)))
        color = list(COLORS)[int(random.integers(len(COLORS)))]
        shape = SHAPES[int(random.integers(len(SHAPES)))]
        radius = 0.28 + 0.14 * random.random()
        x, y = radius + (1 - 2 * radius) * random.random(2)
        pixels = draw(color, shape, size=self._size, center=(x, y), radius=radius)
        return CaptionedImage(pixels, f"a {color} {shape}")


def build(section: Any, path: str | None) -> Shapes:
    check(section, path)
    return Shapes("shapes", count=TRAINING, image_size=section.image_size)


def build_validation(section: Any, path: str | None) -> Shapes:
    check(section, path)
    return Shapes("shapes_validation", count=VALIDATION, image_size=section.image_size)


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: when given a path."""
    if path is not None:
        raise DataError(
            f"the datasets of drawn shapes take no dataset_path, but it is set to '{path}'",
            hint="leave out dataset_path, or choose a dataset that reads files",
        )
