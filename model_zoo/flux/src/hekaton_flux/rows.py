"""Images with texts to the rows of a batch: a document is one image, and so is a row."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from hekaton.data import Encoded, Values, Whole
from hekaton.data.feed import Feed
from hekaton.errors import DataError
from hekaton_flux.decoding import BadImages, Unusable, pixels_of
from hekaton_flux.encoder_choice import check_encoders, frozen_encoders
from hekaton_flux.encoders import FrozenEncoders
from hekaton_flux.images import CaptionedImage, EncodedImage, Floats, StoredImage
from hekaton_flux.settings import FlowMatchingSection

Document: TypeAlias = CaptionedImage | StoredImage | EncodedImage


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
        self._encoders, self.section = encoders, section
        self._bad = BadImages(section.max_bad_images)
        self.fingerprint = (
            f"captioned_images, upright ({encoders.fingerprint}, image_size {section.image_size}, "
            f"text_length {section.text_length}, smaller_images {section.smaller_images})"
        )

    def cut(self, document: Document) -> Iterator[Whole]:
        yield Whole(document)

    def encode(self, parts: Sequence[Whole]) -> list[Encoded]:
        """One unit each, and none for a bad image.

        :raises DataError: for pixels of another size, and for more bad images than the section lets pass.
        """
        found = [self.encoded(part.content) for part in parts]
        return [Encoded(np.zeros((0, 1), np.float32) if one is None else _joined(one)[None]) for one in found]

    def encoded(self, image: Document) -> EncodedImage | None:
        """What the encoders give for an image, ``None`` for a bad one."""
        try:
            decoded = self.decoded(image)
        except Unusable as e:
            self.skip(image.where, str(e))
            return None
        return decoded if isinstance(decoded, EncodedImage) else self.of(decoded)

    def decoded(self, image: Document) -> CaptionedImage | EncodedImage:
        """An image in pixels, unless it is encoded.

        :raises Unusable: for a bad one.
        """
        section = self.section
        if isinstance(image, EncodedImage):
            return image
        if isinstance(image, StoredImage):
            enlarge = section.smaller_images == "enlarge"
            image = CaptionedImage(pixels_of(image, size=section.image_size, enlarge=enlarge), image.text)
        size = section.image_size
        if image.pixels.shape != (size, size, 3):
            raise DataError(
                f"an image has the shape {image.pixels.shape}, flow_matching.image_size is {size}",
            )
        return CaptionedImage(image.pixels, image.text)

    def of(self, image: CaptionedImage) -> EncodedImage:
        return EncodedImage(*self._encoders.image(image.pixels), *self._encoders.text(image.text))

    def skip(self, where: str, reason: str) -> None:
        """:raises DataError: for more bad images than the section lets pass."""
        self._bad.add(where, reason)


def _joined(image: EncodedImage) -> Floats:
    return np.concatenate(
        [values.ravel() for values in (image.latents, image.latents_std, image.text, image.pooled)]
    )


class ImageRows:
    """``images``: one image in each row, with its text and an empty one encoded."""

    unit = "images"
    units_per_row = 1
    ahead = 1
    row_is_document = True
    cursor_width = 2

    def __init__(self, encoders: FrozenEncoders, section: FlowMatchingSection) -> None:
        self._encoders, self._shapes = encoders, shapes_of(encoders, section)

    def empty(self, rows: int) -> dict[str, Values]:
        """``present`` is true for an image and false for padding, ``place`` is its number in the order of the
        dataset, beside what ``flow_matching`` takes."""
        tensors: dict[str, Values] = {
            name: np.zeros((rows, *shape), np.float32) for name, shape in self._shapes.items()
        }
        for name, values in self._empty_text.items():
            tensors[f"empty_{name}"] = np.broadcast_to(values, (rows, *values.shape)).copy()
        tensors["present"] = np.zeros(rows, np.bool_)
        tensors["place"] = np.zeros(rows, np.int64)
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
        out["place"][...] = spans[0].document * feed.rows + feed.row
        return 1

    @functools.cached_property
    def _empty_text(self) -> dict[str, Floats]:
        return dict(zip(("text", "pooled"), self._encoders.text(""), strict=True))


def encoder(section: Any, tokenizer: Any) -> ImageEncoder:
    return ImageEncoder(frozen_encoders(section), section)


def check(section: Any, tokenizer: Any) -> None:
    """:raises ConfigError: for encoders that are not there."""
    check_encoders(section)


def row_maker(section: Any, seq_len: int) -> ImageRows:
    return ImageRows(frozen_encoders(section), section)
