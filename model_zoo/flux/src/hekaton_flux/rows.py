"""Images with texts to the rows of a batch: a document is one image, and so is a row."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hekaton.data import Encoded, Values, Whole
from hekaton.data.feed import Feed
from hekaton.errors import DataError
from hekaton_flux.encoders import Floats, FrozenEncoders, frozen_encoders
from hekaton_flux.images import CaptionedImage
from hekaton_flux.settings import FlowMatchingSection


def shapes_of(encoders: FrozenEncoders, section: FlowMatchingSection) -> dict[str, tuple[int, ...]]:
    """The tensors that an image with its text is encoded to."""
    sizes, side = encoders.sizes, section.image_size // 8
    latents = (sizes.latent_channels, side, side)
    return {
        "latents": latents,
        "latents_std": latents,
        "text": (section.text_length, sizes.text_dim),
        "pooled": (sizes.pooled_dim,),
    }


class ImageEncoder:
    """``captioned_images``: a document is one unit, in which the values of all tensors of the image and its
    text stand one after the other."""

    def __init__(self, encoders: FrozenEncoders, section: FlowMatchingSection) -> None:
        self._encoders, self._section = encoders, section
        self._shapes = shapes_of(encoders, section)
        self.fingerprint = (
            f"captioned_images {encoders.fingerprint} {section.image_size} {section.text_length}"
        )

    def cut(self, document: CaptionedImage) -> Iterator[Whole]:
        yield Whole(document)

    def encode(self, parts: Sequence[Whole]) -> list[Encoded]:
        """:raises DataError: for an image of another size."""
        return [Encoded(self._encoded(part.content)[None]) for part in parts]

    def _encoded(self, image: CaptionedImage) -> Floats:
        size = self._section.image_size
        if image.pixels.shape != (size, size, 3):
            raise DataError(
                f"an image has the shape {image.pixels.shape}, flow_matching.image_size is {size}",
            )
        tensors = (*self._encoders.image(image.pixels), *self._encoders.text(image.text))
        return np.concatenate([values.ravel() for values in tensors])


class ImageRows:
    """``images``: one image in each row, with its text and an empty one encoded."""

    unit = "images"
    units_per_row = 1
    ahead = 1
    cursor_width = 2

    def __init__(self, encoders: FrozenEncoders, section: FlowMatchingSection) -> None:
        self._encoders, self._shapes = encoders, shapes_of(encoders, section)

    def empty(self, rows: int) -> dict[str, Values]:
        """``present`` is true for an image and false for padding, beside what ``flow_matching`` takes."""
        tensors: dict[str, Values] = {
            name: np.zeros((rows, *shape), np.float32) for name, shape in self._shapes.items()
        }
        for name, values in self._empty_text.items():
            tensors[f"empty_{name}"] = np.broadcast_to(values, (rows, *values.shape)).copy()
        tensors["present"] = np.zeros(rows, np.bool_)
        return tensors

    def make(self, feed: Feed, out: Mapping[str, Values]) -> int:
        spans = feed.take(1)
        if not spans:
            return 0
        (values,) = spans[0].ids
        begin = 0
        for name, shape in self._shapes.items():
            end = begin + math.prod(shape)
            out[name][...] = values[begin:end].reshape(shape)
            begin = end
        out["present"][...] = True
        return 1

    @functools.cached_property
    def _empty_text(self) -> dict[str, Floats]:
        return dict(zip(("text", "pooled"), self._encoders.text(""), strict=True))


def encoder(section: Any, tokenizer: Any) -> ImageEncoder:
    return ImageEncoder(frozen_encoders(section), section)


def row_maker(section: Any, seq_len: int) -> ImageRows:
    return ImageRows(frozen_encoders(section), section)
