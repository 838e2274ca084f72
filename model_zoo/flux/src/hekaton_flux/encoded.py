"""What ``hekaton flux preprocess`` made of images and texts: a folder of arrays, read without the encoders.

``encoded.json`` is written last: a folder without it is not whole. Each shard has an array for each tensor of
an image, ``00000-latents.npy``; values in bfloat16 are the upper halves of float32.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import functools
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hekaton.data.contents import known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import ConfigError, DataError
from hekaton_flux.encoders import EncoderSizes, TrialEncoders
from hekaton_flux.images import EncodedImage, Floats, Pixels
from hekaton_flux.pretrained import Autoencoder
from hekaton_flux.settings import FlowMatchingSection

log = logging.getLogger("hekaton")

MANIFEST = "encoded.json"
UNFINISHED = "encoding.unfinished"
"""A file that is locked while a folder is written, and is left by a call that was interrupted."""
TENSORS = ("latents", "latents_std", "text", "pooled")
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder holds.

    :param encoders: fingerprint of those that were used.
    :param shards: images in each.
    :param texts: those that were encoded beside the captions, the empty one first.
    """

    encoders: str
    sizes: EncoderSizes
    image_size: int
    text_length: int
    precision: Precision
    shards: tuple[int, ...]
    texts: tuple[str, ...]


def to_bits(values: Floats, precision: Precision) -> npt.NDArray[Any]:
    """Values as they are stored; bfloat16 is rounded to the nearest, ties to even."""
    if precision == "float32":
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(stored: npt.NDArray[Any]) -> Floats:
    if stored.dtype == np.float32:
        return np.array(stored)
    return (stored.astype(np.uint32) << 16).view(np.float32)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a new or empty folder, or one where a call was interrupted, of
    which the shards are removed.

    :raises DataError: when that cannot be.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is no folder", hint="choose another --out")
    if (folder / MANIFEST).exists():
        raise DataError(f"'{folder}' has been written already", hint="choose another --out, or remove it")
    if folder.exists() and not (folder / UNFINISHED).exists() and any(folder.iterdir()):
        raise DataError(f"'{folder}' is not empty", hint="choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / UNFINISHED).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DataError(f"another process is writing into '{folder}'", hint="choose another --out") from e
        except OSError as e:
            log.debug("no locks in '%s': %s", folder, e.strerror)
        if (folder / MANIFEST).exists():  # another process finished it a moment ago
            raise DataError(f"'{folder}' has been written already", hint="choose another --out, or remove it")
        for name in TENSORS:
            for left in folder.glob(f"[0-9]*-{name}.npy"):
                left.unlink()
        yield
        (folder / UNFINISHED).unlink()


def write_shard(folder: Path, number: int, images: Sequence[EncodedImage], precision: Precision) -> None:
    """:raises DataError: for values that are not finite."""
    for name in TENSORS:
        values = np.stack([getattr(image, name) for image in images])
        if not np.isfinite(values).all():
            raise DataError(f"the encoders give {name} that are not finite")
        np.save(folder / f"{number:05}-{name}.npy", to_bits(values, precision))


def write_texts(folder: Path, encodings: Iterable[tuple[Floats, Floats]]) -> None:
    """The encodings of some texts, in float32."""
    states, pooled = zip(*encodings, strict=True)
    np.save(folder / "texts-text.npy", np.stack(states))
    np.save(folder / "texts-pooled.npy", np.stack(pooled))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    unfinished = folder / f"{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    unfinished.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """:raises DataError: for a folder that ``hekaton flux preprocess`` has not written, or not to its end."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = EncoderSizes(**content.pop("sizes"))
        return Manifest(
            **{**content, "shards": tuple(content["shards"]), "texts": tuple(content["texts"])}, sizes=sizes
        )
    except FileNotFoundError as e:
        raise DataError(
            f"'{folder}' has no {MANIFEST}: it is not what hekaton flux preprocess writes, or not whole",
            hint="run hekaton flux preprocess to its end",
        ) from e
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise DataError(f"cannot read '{folder / MANIFEST}': {e}") from e


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


class StoredEncodings:
    """In place of the encoders: the encodings of the texts in a folder, and no images."""

    def __init__(self, folder: Path, section: FlowMatchingSection) -> None:
        """:raises DataError: for a folder that is not whole, or of other sizes."""
        manifest = fitting_manifest(folder, section)
        self.sizes, self.fingerprint = manifest.sizes, manifest.encoders
        self._folder = folder
        self._autoencoder_path = section.autoencoder
        self._places = {text: place for place, text in enumerate(manifest.texts)}

    def image(self, pixels: Pixels) -> tuple[Floats, Floats]:
        """:raises ConfigError: always."""
        raise ConfigError(
            f"images are to be encoded, but flow_matching.encoded = '{self._folder}' takes the place of the "
            "encoders",
            hint='set training.dataset (and validation.dataset) to "encoded_images", or leave out '
            "flow_matching.encoded",
        )

    def pixels(self, latents: Floats) -> Pixels:
        """By the autoencoder that ``flow_matching.autoencoder`` names.

        :raises ConfigError: when it names none.
        """
        if self.fingerprint == TrialEncoders.fingerprint:
            return TrialEncoders(1).pixels(latents)
        if not self._autoencoder_path:
            raise ConfigError(
                "images of samples need an autoencoder, and flow_matching.encoded has none",
                hint="set flow_matching.autoencoder as well, or flow_matching.sample_freq = 0",
            )
        return self._autoencoder.pixels(latents)

    @functools.cached_property
    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self._autoencoder_path)

    def text(self, text: str) -> tuple[Floats, Floats]:
        """:raises ConfigError: for a text that was not encoded."""
        if text not in self._places:
            raise ConfigError(
                f"'{self._folder}' has no encoding of the text '{text}'",
                hint="flow_matching.sample_prompts are encoded by hekaton flux preprocess: run it again, or "
                "name the folders of the encoders",
            )
        place = self._places[text]
        try:
            return tuple(np.load(self._folder / f"texts-{name}.npy")[place] for name in ("text", "pooled"))  # type: ignore[return-value]
        except (OSError, ValueError, IndexError, EOFError) as e:
            raise DataError(f"cannot read the texts in '{self._folder}': {e}") from e


class EncodedImages:
    """The images of a folder, mapped into memory."""

    def __init__(self, folder: Path, section: FlowMatchingSection) -> None:
        """:raises DataError: for a folder that is not whole, damaged, or of other encoders than the run's."""
        self._folder, self._manifest = folder, fitting_manifest(folder, section)
        if section.encoded and Path(section.encoded) != folder:
            used = read_manifest(Path(section.encoded)).encoders
            if used != self._manifest.encoders:
                raise DataError(
                    f"'{folder}' and flow_matching.encoded = '{section.encoded}' are of different encoders"
                )
        self._ends = list(itertools.accumulate(self._manifest.shards))
        self._shapes = _shapes(self._manifest)
        self._contents = {path.name: known_file(path).content for path in self._paths()}
        self.fingerprint = fingerprint("encoded_images 1", *(f"{k} {v}" for k, v in self._contents.items()))
        for number in range(len(self._ends)):
            self._arrays(number)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def files(self) -> Mapping[str, str]:
        return self._contents

    def fetch(self, indices: Sequence[int]) -> list[EncodedImage]:
        found = []
        for index in indices:
            number = bisect.bisect_right(self._ends, index)
            at = index - (self._ends[number - 1] if number else 0)
            arrays = self._arrays(number)
            found.append(EncodedImage(**{name: from_bits(values[at]) for name, values in arrays.items()}))
        return found

    def _paths(self) -> list[Path]:
        shards = range(len(self._manifest.shards))
        return [self._folder / MANIFEST, *(self._path(number, name) for number in shards for name in TENSORS)]

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{number:05}-{name}.npy"

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a dataset lives as long as its process
    def _arrays(self, number: int) -> dict[str, npt.NDArray[Any]]:
        dtype = np.dtype(np.float32 if self._manifest.precision == "float32" else np.uint16)
        arrays = {}
        for name in TENSORS:
            path = self._path(number, name)
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as e:
                raise DataError(f"cannot read '{path}': {e}", hint="preprocess again") from e
            expected = (self._manifest.shards[number], *self._shapes[name])
            if arrays[name].shape != expected or arrays[name].dtype != dtype:
                raise DataError(
                    f"'{path}' has {arrays[name].shape} of {arrays[name].dtype}, {MANIFEST} says {expected} "
                    f"of {dtype}"
                )
        return arrays


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    sizes, side = manifest.sizes, manifest.image_size // 8
    latents = (sizes.latent_channels, side, side)
    text = (manifest.text_length, sizes.text_dim)
    return dict(zip(TENSORS, (latents, latents, text, (sizes.pooled_dim,)), strict=True))


def build(section: Any, path: str | None) -> EncodedImages:
    check(section, path)
    return EncodedImages(Path(path or section.encoded), section)


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: without a folder that fits the run."""
    if not section.encoded:
        raise DataError(
            "dataset 'encoded_images' needs flow_matching.encoded, what hekaton flux preprocess wrote",
            hint="dataset_path names another one of the same encoders, for validation",
        )
    if here:
        fitting_manifest(Path(path or section.encoded), section)
