"""What stays as it is while the transformer is trained: encoders of images and texts.

They run on the CPU, in the data workers of a run: they are no part of its model, so that no optimizer and no
checkpoint has them. Each image and text is encoded by itself: what it is encoded to does not depend on which
ones are read together, and so not on the layout.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import ConfigDict, Field

from hekaton_flux.images import Floats, Pixels

_Size = Annotated[int, Field(ge=1, le=2**20)]


@dataclass(frozen=True)
class EncoderSizes:
    """:param latent_channels: of the autoencoder; a patch of the model has four times as many.
    :param text_dim: of the states of a text, and ``pooled_dim`` of its pooled encoding."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # where they are read from a file
    latent_channels: _Size
    text_dim: _Size
    pooled_dim: _Size


class FrozenEncoders(Protocol):
    """An autoencoder and the two text encoders."""

    sizes: EncoderSizes
    fingerprint: str
    """Changes when the same image or text could be encoded to other values."""

    def image(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the latents, (latent_channels, height / 8, width / 8) both, scaled
        such that latents have about mean 0 and variance 1.

        :param pixels: (height, width, 3), height and width multiples of 16.
        """

    def pixels(self, latents: Floats) -> Pixels:
        """The image of latents as :meth:`image` gives them, (height, width, 3)."""

    def text(self, text: str) -> tuple[Floats, Floats]:
        """The states, (text_length, text_dim), and the pooled encoding, (pooled_dim,), of a text."""


class TrialEncoders:
    """Encoders that need no files, for the debug model: a latent is the mean colour of 8 by 8 pixels and how
    much brighter its left half is; a word is a fixed direction, with its place in the text added."""

    sizes = EncoderSizes(latent_channels=4, text_dim=64, pooled_dim=32)
    fingerprint = "trial encoders 1"

    def __init__(self, text_length: int) -> None:
        self._text_length = text_length

    def image(self, pixels: Pixels) -> tuple[Floats, Floats]:
        height, width, _ = pixels.shape
        blocks = pixels.reshape(height // 8, 8, width // 8, 8, 3).astype(np.float64) / 127.5 - 1
        colors = blocks.mean(axis=(1, 3)).transpose(2, 0, 1)
        brightness = blocks.mean(axis=(1, 4))
        edge = brightness[..., :4].mean(axis=-1) - brightness[..., 4:].mean(axis=-1)
        latents = np.concatenate([colors, edge[None]]).astype(np.float32)
        return latents, np.zeros_like(latents)

    def pixels(self, latents: Floats) -> Pixels:
        """The colours of :meth:`image` as pixels again, (height, width, 3): blocks of one colour."""
        colors = np.clip((latents[:3] + 1) * 127.5, 0, 255).round().astype(np.uint8)
        return np.ascontiguousarray(colors.repeat(8, axis=1).repeat(8, axis=2).transpose(1, 2, 0))

    def text(self, text: str) -> tuple[Floats, Floats]:
        words = text.lower().split()[: self._text_length]
        states = np.zeros((self._text_length, self.sizes.text_dim), np.float32)
        for place, word in enumerate(words):
            states[place] = _direction(word, self.sizes.text_dim) + _direction(
                f" {place}", self.sizes.text_dim
            )
        pooled = np.zeros(self.sizes.pooled_dim, np.float32)
        for word in words:
            pooled += _direction(word, self.sizes.pooled_dim)
        return states, pooled


@functools.lru_cache(maxsize=4096)
def _direction(word: str, size: int) -> Floats:
    """Normal values that follow from a word."""
    seed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(size, dtype=np.float32)
