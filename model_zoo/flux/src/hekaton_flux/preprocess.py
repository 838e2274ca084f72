"""``hekaton flux preprocess``: what the frozen encoders give for the images of a dataset, written once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hekaton.cli.arguments import as_path, load_files, take_number, take_texts
from hekaton.errors import ConfigError, DataError

log = logging.getLogger("hekaton")

USAGE = """\
usage: hekaton flux preprocess RUN.toml --out FOLDER [options] [flags of the run]

Encode the images and texts of a run's dataset with the run's encoders, and write them into FOLDER, for
flow_matching.encoded = FOLDER and training.dataset = "encoded_images". The texts of
flow_matching.sample_prompts and an empty one are written, too: a run on FOLDER opens no encoder.

  --out FOLDER              where to write; it must not be there yet, or be of a call that was interrupted
  --of training|validation  which dataset of the run; training by default
  --precision PRECISION     bfloat16 (the default) or float32
  --device DEVICE           where the encoders compute, cpu (the default) or cuda
  --shard_images N          images in each file; 1000 by default

The section [flow_matching] says the size of the images, the length of the texts, the encoders, and how many
bad images are skipped."""

_FETCHED = 16
"""Images that are read together."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton flux preprocess ARGUMENTS``."""
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    shard_images, rest = take_number(arguments, "--shard_images", at_least=1, at_most=2**24)
    given, rest = take_texts(rest, {"out": "", "of": "training", "precision": "bfloat16", "device": "cpu"})
    if not given["out"]:
        raise ConfigError("hekaton flux preprocess: --out FOLDER is missing")
    for name, choices in {
        "of": ("training", "validation"), "precision": ("bfloat16", "float32"), "device": ("cpu", "cuda"),
    }.items():  # fmt: skip
        if given[name] not in choices:
            raise ConfigError(f"--{name} {given[name]}: one of {', '.join(choices)} was expected")
    loaded = load_files(rest)

    from hekaton.metrics import set_up_logging

    set_up_logging(0, 1)
    began = time.monotonic()
    folder = as_path(given["out"])
    try:
        count = _write(loaded, folder, given, shard_images or 1000)
    except OSError as e:
        raise DataError(f"cannot write '{e.filename or folder}': {e.strerror or e}") from e
    print(f"{folder}: {count:,} images in {time.monotonic() - began:,.1f} s")
    return 0


def _write(loaded: Any, folder: Path, given: dict[str, str], shard_images: int) -> int:
    from hekaton.contributions import Dataset
    from hekaton.sources import open_dataset
    from hekaton_flux import encoded
    from hekaton_flux.encoder_choice import frozen_encoders
    from hekaton_flux.pretrained import PretrainedEncoders
    from hekaton_flux.rows import ImageEncoder

    config, plugins = loaded.config, loaded.plugins
    source, section = config.section(given["of"]), config.section("flow_matching")
    if section.encoded:
        raise ConfigError("flow_matching.encoded is set: the encoders are to be used, not what they gave")
    if plugins.get(Dataset, source.dataset).encoder != "captioned_images":
        raise ConfigError(f"{given['of']}.dataset = '{source.dataset}' is no dataset of images with captions")
    if (folder / encoded.MANIFEST).exists():
        raise ConfigError(f"'{folder}' has been written already", hint="choose another --out, or remove it")
    documents = open_dataset(config, plugins, source.dataset, source.dataset_path)
    encoders = frozen_encoders(section)
    if isinstance(encoders, PretrainedEncoders):
        encoders.to(given["device"])
    images = ImageEncoder(encoders, section)
    precision: Any = given["precision"]
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, shard in enumerate(_groups(_encoded(documents, images), shard_images)):
        encoded.write_shard(folder, number, shard, precision)
        shards.append(len(shard))
        log.info("%s images of %s", f"{sum(shards):,}", f"{len(documents):,}")
    if not shards:
        raise DataError(f"{given['of']}.dataset = '{source.dataset}' has no image that can be used")
    texts = tuple(dict.fromkeys(["", *section.sample_prompts]))
    encoded.write_texts(folder, encoders, texts)
    encoded.write_manifest(
        folder,
        encoded.Manifest(
            encoders=encoders.fingerprint, sizes=encoders.sizes, image_size=section.image_size,
            text_length=section.text_length, precision=precision, shards=tuple(shards), texts=texts,
        ),
    )  # fmt: skip
    return sum(shards)


def _encoded(documents: Any, images: Any) -> Iterator[Any]:
    """The images that can be used, in the order of the dataset."""
    for indices in _groups(range(len(documents)), _FETCHED):
        for document in documents.fetch(indices):
            found = images.encoded(document)
            if found is not None:
                yield found


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
