"""What stays as it is while the transformer is trained: encoders of images and texts.

They run on the CPU, in the data workers of a run: they are no part of its model, so that no optimizer and no
checkpoint has them. Each image and text is encoded by itself: what it is encoded to does not depend on which
ones are read together, and so not on the layout.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hekaton.data.identity import fingerprint
from hekaton.errors import ConfigError
from hekaton_flux.images import Pixels
from hekaton_flux.settings import FlowMatchingSection

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncoderSizes:
    """:param latent_channels: of the autoencoder; a patch of the model has four times as many.
    :param text_dim: of the states of a text, and ``pooled_dim`` of its pooled encoding."""

    latent_channels: int
    text_dim: int
    pooled_dim: int


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


class PretrainedEncoders:
    """T5, CLIP and an autoencoder from local folders, by transformers and diffusers."""

    def __init__(self, section: FlowMatchingSection) -> None:
        """:raises ConfigError: for a folder that cannot be opened, or sizes that training cannot take."""
        self._text_length = section.text_length
        self._t5_tokenizer, self._t5 = _opened("text_encoder", section.text_encoder, "T5EncoderModel")
        self._clip_tokenizer, self._clip = _opened("pooled_encoder", section.pooled_encoder, "CLIPTextModel")
        _, self._autoencoder = _opened("autoencoder", section.autoencoder, "AutoencoderKL")
        content = self._autoencoder.config
        pixels = 2 ** (len(content.block_out_channels) - 1)
        if pixels != 8:
            raise ConfigError(
                f"flow_matching.autoencoder = '{section.autoencoder}': a latent is of {pixels} by {pixels} "
                "pixels, the model is trained on those of 8 by 8"
            )
        self._shift, self._scale = content.shift_factor or 0.0, content.scaling_factor
        self.sizes = EncoderSizes(
            latent_channels=content.latent_channels,
            text_dim=self._t5.config.d_model,
            pooled_dim=self._clip.config.hidden_size,
        )
        paths = (section.text_encoder, section.pooled_encoder, section.autoencoder)
        self.fingerprint = fingerprint(*(_digest(Path(path)) for path in paths))

    def image(self, pixels: Pixels) -> tuple[Floats, Floats]:
        import torch

        with torch.no_grad():
            given = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
            found = self._autoencoder.encode(given).latent_dist
            mean, std = (found.mean - self._shift) * self._scale, found.std * self._scale
        return mean[0].numpy(), std[0].numpy()

    def text(self, text: str) -> tuple[Floats, Floats]:
        import torch

        with torch.no_grad():
            ids = _ids(self._t5_tokenizer, text, self._text_length)
            states = self._t5(ids).last_hidden_state
            longest = self._clip.config.max_position_embeddings
            pooled = self._clip(_ids(self._clip_tokenizer, text, longest)).pooler_output
        return states[0].numpy(), pooled[0].numpy()


def _ids(tokenizer: Any, text: str, length: int) -> Any:
    return tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _opened(field: str, path: str, name: str) -> tuple[Any, Any]:
    """The tokenizer of a folder, where it is of an encoder of texts, and the model, which is not trained."""
    if not Path(path).is_dir():
        raise ConfigError(f"flow_matching.{field} = '{path}' is no folder")
    try:
        import diffusers
        import transformers
    except ImportError as e:
        raise ConfigError(
            f"flow_matching.{field} needs transformers and diffusers: {e}",
            hint='pip install "hekaton-flux[encoders]"',
        ) from e
    try:
        if name == "AutoencoderKL":
            tokenizer, model = None, diffusers.AutoencoderKL.from_pretrained(path, local_files_only=True)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = getattr(transformers, name).from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ConfigError(f"flow_matching.{field} = '{path}' is no {name}: {e}") from e
    return tokenizer, model.eval().requires_grad_(False)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _pretrained(text_encoder: str, pooled_encoder: str, autoencoder: str, text_length: int) -> FrozenEncoders:
    return PretrainedEncoders(
        FlowMatchingSection(
            text_encoder=text_encoder, pooled_encoder=pooled_encoder, autoencoder=autoencoder,
            text_length=text_length,
        )
    )  # fmt: skip


def frozen_encoders(section: FlowMatchingSection) -> FrozenEncoders:
    """The encoders of a run, opened once in a process.

    :raises ConfigError: when some of the three folders are named and others not, or for one that is wrong.
    """
    fields = ("text_encoder", "pooled_encoder", "autoencoder")
    missing = [name for name in fields if not getattr(section, name)]
    if len(missing) == len(fields):
        return TrialEncoders(section.text_length)
    if missing:
        raise ConfigError(
            f"[flow_matching] names some encoders, and not {', '.join(missing)}",
            hint="set all three of text_encoder, pooled_encoder and autoencoder, or none",
        )
    return _pretrained(section.text_encoder, section.pooled_encoder, section.autoencoder, section.text_length)
