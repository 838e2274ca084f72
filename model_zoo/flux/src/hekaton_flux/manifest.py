"""``encoded.json``: what a folder holds that ``hekaton flux preprocess`` wrote. It is written last: a folder
without it is not whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from hekaton.errors import DataError
from hekaton_flux.encoders import EncoderSizes
from hekaton_flux.settings import FlowMatchingSection

MANIFEST = "encoded.json"
TENSORS = ("latents", "latents_std", "text", "pooled")
Precision = Literal["bfloat16", "float32"]
_Images = Annotated[int, Field(ge=1, le=2**24)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds.

    :param encoders: fingerprint of those that were used.
    :param shards: images in each.
    :param texts: those that were encoded beside the captions, the empty one first.
    :param files: the hash of the content of each array, by the name of its file.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    encoders: Annotated[str, Field(min_length=1)]
    sizes: EncoderSizes
    image_size: Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
    text_length: Annotated[int, Field(ge=1, le=4096)]
    precision: Precision
    shards: Annotated[tuple[_Images, ...], Field(min_length=1)]
    texts: tuple[str, ...]
    files: dict[str, str]

    def __post_init__(self) -> None:
        if self.texts[:1] != ("",):
            raise ValueError("the first of the texts is not the empty one")
        if len(set(self.texts)) < len(self.texts):
            raise ValueError("one of the texts is there twice")
        if set(self.files) != set(array_names(len(self.shards))):
            raise ValueError("the files are not those of the shards and texts")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors of an image."""
        side = self.image_size // 8
        latents = (self.sizes.latent_channels, side, side)
        text = (self.text_length, self.sizes.text_dim)
        return dict(zip(TENSORS, (latents, latents, text, (self.sizes.pooled_dim,)), strict=True))


def array_names(shards: int) -> list[str]:
    """The files of a folder with so many shards, beside the manifest."""
    of_texts = [f"texts-{name}.npy" for name in ("text", "pooled")]
    return [*of_texts, *(f"{number:05}-{name}.npy" for number in range(shards) for name in TENSORS)]


_manifest: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    unfinished = folder / f"{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    unfinished.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """:raises DataError: for a folder that ``hekaton flux preprocess`` has not written, or not to its end,
    and for facts that are wrong by themselves."""
    path = folder / MANIFEST
    try:
        return _manifest.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError as e:
        raise DataError(
            f"'{folder}' has no {MANIFEST}: it is not what hekaton flux preprocess writes, or not whole",
            hint="run hekaton flux preprocess to its end",
        ) from e
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror}") from e
    except ValidationError as e:
        wrong = e.errors()[0]
        where = "".join(f"{name}: " for name in wrong["loc"])
        raise DataError(f"cannot read '{path}': {where}{wrong['msg']}", hint="preprocess again") from e


def fitting_manifest(folder: Path, section: FlowMatchingSection) -> Manifest:
    """:raises DataError: also for images or texts of another size than the run's."""
    manifest = read_manifest(folder)
    for name in ("image_size", "text_length"):
        there, here = getattr(manifest, name), getattr(section, name)
        if there != here:
            raise DataError(
                f"'{folder}' was written with flow_matching.{name} = {there}, and the run has {here}",
                hint=f"set flow_matching.{name} = {there}, or preprocess again",
            )
    return manifest
