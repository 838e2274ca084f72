"""What ``hekaton flux preprocess`` made of images and texts: a folder of arrays, read without the encoders.

Each shard has an array for each tensor of an image, ``00000-latents.npy``; values in bfloat16 are the upper
halves of float32.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.data.contents import KnownFile, known_file
from hekaton.data.identity import fingerprint
from hekaton.errors import ConfigError, DataError, about
from hekaton_flux.encoders import TrialEncoders
from hekaton_flux.images import EncodedImage, Floats, Pixels
from hekaton_flux.manifest import (
    MANIFEST,
    TENSORS,
    Manifest,
    Precision,
    array_names,
    fitting_manifest,
    read_manifest,
)
from hekaton_flux.pretrained import Autoencoder
from hekaton_flux.settings import FlowMatchingSection

log = logging.getLogger("hekaton")

UNFINISHED = "encoding.unfinished"
"""A file that is locked while a folder is written, and is left by a call that was interrupted."""


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
        _check_given(values, name, precision)
        np.save(folder / f"{number:05}-{name}.npy", to_bits(values, precision))


def write_texts(folder: Path, encodings: Iterable[tuple[Floats, Floats]]) -> None:
    """The encodings of some texts, in float32.

    :raises DataError: for values that are not finite.
    """
    for name, values in zip(("text", "pooled"), zip(*encodings, strict=True), strict=True):
        whole = np.stack(values)
        _check_given(whole, name, "float32")
        np.save(folder / f"texts-{name}.npy", whole)


def _check_given(values: Floats, name: str, precision: Precision) -> None:
    """:raises DataError: for values that are not finite, or no more once they are rounded."""
    ends = np.array([values.min(), values.max()], np.float32)
    if not (np.isfinite(ends).all() and np.isfinite(from_bits(to_bits(ends, precision))).all()):
        raise DataError(f"the encoders give {name} that are not finite in {precision}")


def _read(path: Path, expected: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of a folder, mapped into memory.

    :raises DataError: for one that is damaged, or of another shape or type than the manifest says.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as e:
        raise DataError(f"cannot read '{path}': {e.strerror or e}", hint="preprocess again") from e
    except (ValueError, EOFError) as e:
        raise DataError(f"cannot read '{path}': {e}", hint="preprocess again") from e
    if not isinstance(values, np.ndarray):
        raise DataError(f"cannot read '{path}': it is no array", hint="preprocess again")
    if values.shape != expected or values.dtype != dtype:
        raise DataError(
            f"'{path}' has {values.shape} of {values.dtype}, {MANIFEST} says {expected} of {np.dtype(dtype)}",
            hint="preprocess again",
        )
    return values


def _texts(folder: Path, manifest: Manifest) -> list[npt.NDArray[Any]]:
    """The states of the texts, (texts, text_length, text_dim), and their pooled encodings."""
    found, shapes = [], manifest.shapes()
    for name in ("text", "pooled"):
        path = folder / f"texts-{name}.npy"
        found.append(_read(path, (len(manifest.texts), *shapes[name]), np.float32))
        _check_content(known_file(path), manifest)
    return found


def _check_content(file: KnownFile, manifest: Manifest) -> None:
    """:raises DataError: for a file that is not as it was written."""
    if file.content != manifest.files[file.path.name]:
        raise DataError(
            f"'{file.path}' has not the content that hekaton flux preprocess wrote: {MANIFEST} has its hash",
            hint="copy the folder again, or preprocess again",
        )


class StoredEncodings:
    """In place of the encoders: the encodings of the texts in a folder, and no images."""

    def __init__(self, folder: Path, section: FlowMatchingSection) -> None:
        """:raises DataError: for a folder that is not whole, damaged, or of other sizes."""
        manifest = fitting_manifest(folder, section)
        self.sizes, self.fingerprint = manifest.sizes, manifest.encoders
        self._folder = folder
        self._autoencoder_path = section.autoencoder
        self._places = {text: place for place, text in enumerate(manifest.texts)}
        self._texts = _texts(folder, manifest)

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
        states, pooled = (np.array(values[self._places[text]]) for values in self._texts)
        return states, pooled


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
        check_folder(folder, self._manifest)
        self._ends = list(itertools.accumulate(self._manifest.shards))
        names = [MANIFEST, *array_names(len(self._manifest.shards))]
        self._files = {name: known_file(folder / name) for name in names}
        for name in names[1:]:
            _check_content(self._files[name], self._manifest)
        self.fingerprint = fingerprint("encoded_images 2", *(f"{k} {v}" for k, v in self.files().items()))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def files(self) -> Mapping[str, str]:
        return {name: file.content for name, file in self._files.items()}

    def fetch(self, indices: Sequence[int]) -> list[EncodedImage]:
        found = []
        for index in indices:
            number = bisect.bisect_right(self._ends, index)
            at = index - (self._ends[number - 1] if number else 0)
            for name in TENSORS:  # a mapped file that was cut short would end the process
                path = self._path(number, name)
                self._files[path.name] = self._files[path.name].unchanged()
            arrays = self._arrays(number)
            found.append(EncodedImage(**{name: from_bits(values[at]) for name, values in arrays.items()}))
        return found

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{number:05}-{name}.npy"

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a dataset lives as long as its process
    def _arrays(self, number: int) -> dict[str, npt.NDArray[Any]]:
        return _shard(self._folder, self._manifest, number)


def check_folder(folder: Path, manifest: Manifest) -> None:
    """:raises DataError: when the files are not those that the manifest says."""
    _texts(folder, manifest)
    for number in range(len(manifest.shards)):
        _shard(folder, manifest, number)
    if extra := sorted(folder.glob(f"{len(manifest.shards):05}-*.npy")):
        raise DataError(
            f"'{folder}' has '{extra[0].name}', and {MANIFEST} says {len(manifest.shards):,} shards",
            hint="preprocess again",
        )


def _shard(folder: Path, manifest: Manifest, number: int) -> dict[str, npt.NDArray[Any]]:
    dtype = {"float32": np.float32, "bfloat16": np.uint16}[manifest.precision]
    count = manifest.shards[number]
    return {
        name: _read(folder / f"{number:05}-{name}.npy", (count, *shape), dtype)
        for name, shape in manifest.shapes().items()
    }


def build(section: Any, path: str | None) -> EncodedImages:
    check(section, path, here=False)
    return EncodedImages(Path(path or section.encoded), section)


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """:raises DataError: without a folder that fits the run."""
    if not section.encoded:
        raise DataError(
            "dataset 'encoded_images' needs flow_matching.encoded, what hekaton flux preprocess wrote",
            hint="dataset_path names another one of the same encoders, for validation",
        )
    if here:
        folder = Path(path or section.encoded)
        with about("" if path else "flow_matching.encoded"):
            check_folder(folder, fitting_manifest(folder, section))
