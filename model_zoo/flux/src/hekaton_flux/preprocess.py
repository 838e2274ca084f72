"""``hekaton flux preprocess``: what the frozen encoders give for the images of a dataset, written once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.cli.arguments import as_path, load_files, take_number, take_texts
from hekaton.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hekaton.distributed import Process
    from hekaton_flux.images import EncodedImage
    from hekaton_flux.rows import ImageEncoder

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

Under torchrun the processes share out the images, and FSDP shards the text encoders over them, for encoders
that are too large for one device.

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
    import torch

    from hekaton.distributed import process_group, this_process
    from hekaton.failures.early import told_to_the_others
    from hekaton.launchers import adopt_launcher
    from hekaton.metrics import set_up_logging

    adopt_launcher()
    with told_to_the_others():
        loaded = load_files(rest)
        process = this_process()
        if given["device"] == "cpu":
            process = replace(process, device=torch.device("cpu"))
        elif process.device.type == "cpu":
            raise ConfigError("--device cuda: there is no CUDA device here")
    set_up_logging(process.rank, process.world_size)
    if process.rank == 0:
        for notice in loaded.notices:
            log.info("notice: %s", notice)
    began = time.monotonic()
    folder = as_path(given["out"])
    with process_group(process, loaded.config.comm, dump_folder=loaded.config.job.dump_folder):
        try:
            count = _write(loaded, folder, given, shard_images or 1000, process)
        except OSError as e:
            raise DataError(f"cannot write '{e.filename or folder}': {e.strerror or e}") from e
    if process.rank == 0:
        print(f"{folder}: {count:,} images in {time.monotonic() - began:,.1f} s")
    return 0


def _write(loaded: Any, folder: Path, given: dict[str, str], shard_images: int, process: Process) -> int:
    from hekaton.contributions import Dataset
    from hekaton.identity.together import together
    from hekaton_flux import encoded

    config, plugins = loaded.config, loaded.plugins
    source, section = config.section(given["of"]), config.section("flow_matching")
    if section.encoded:
        raise ConfigError("flow_matching.encoded is set: the encoders are to be used, not what they gave")
    if plugins.get(Dataset, source.dataset).encoder != "captioned_images":
        raise ConfigError(f"{given['of']}.dataset = '{source.dataset}' is no dataset of images with captions")
    if process.rank == 0:
        _say_notices(loaded, source)
    with ExitStack() as claim:

        def claim_folder() -> None:
            if process.rank == 0:
                claim.enter_context(encoded.claimed(folder))

        together(claim_folder)
        return _write_images(loaded, folder, given, shard_images, process)


def _say_notices(loaded: Any, source: Any) -> None:
    """What ``hekaton config check`` says of the dataset."""
    from hekaton.components import section_of
    from hekaton.contributions import Dataset
    from hekaton.data import HasNotices

    record: Any = loaded.plugins.get(Dataset, source.dataset)
    if record.check is None:
        return
    found = record.check.function()(
        section_of(loaded.config, loaded.plugins, record, {}), source.dataset_path
    )
    for notice in found.notices if isinstance(found, HasNotices) else ():
        log.warning("%s", notice)


def _write_images(
    loaded: Any, folder: Path, given: dict[str, str], shard_images: int, process: Process
) -> int:
    """:returns: how many, on the first process."""
    from hekaton.data.contents import known_file
    from hekaton.identity.together import together
    from hekaton.sources import open_dataset
    from hekaton_flux import encoded
    from hekaton_flux.encoder_choice import frozen_encoders
    from hekaton_flux.manifest import Manifest, array_names, write_manifest
    from hekaton_flux.pretrained import PretrainedEncoders
    from hekaton_flux.rows import ImageEncoder
    from hekaton_flux.shared_out import shard

    config = loaded.config
    source, section = config.section(given["of"]), config.section("flow_matching")
    documents = open_dataset(config, loaded.plugins, source.dataset, source.dataset_path)
    encoders = frozen_encoders(section)
    if isinstance(encoders, PretrainedEncoders):
        encoders.to(process.device)
        if process.world_size > 1:
            shard(encoders, process.device)
    images = ImageEncoder(encoders, section)
    precision: Any = given["precision"]
    shards = []  # on the first process, which has all images
    for number, group in enumerate(_groups(_encoded(documents, images, process), shard_images)):
        encoded.write_shard(folder, number, group, precision)
        shards.append(len(group))
        log.info("%s images of %s", f"{sum(shards):,}", f"{len(documents):,}")

    def has_images() -> None:
        if process.rank == 0 and not shards:
            raise DataError(f"{given['of']}.dataset = '{source.dataset}' has no image that can be used")

    together(has_images)
    texts = tuple(dict.fromkeys(["", *section.sample_prompts]))
    of_texts = [encoders.text(text) for text in texts]
    if process.rank == 0:
        encoded.write_texts(folder, of_texts)
        files = {name: known_file(folder / name).content for name in array_names(len(shards))}
        write_manifest(
            folder,
            Manifest(
                encoders=encoders.fingerprint, sizes=encoders.sizes, image_size=section.image_size,
                text_length=section.text_length, precision=precision, shards=tuple(shards), texts=texts,
                files=files,
            ),
        )  # fmt: skip
    return sum(shards)


def _encoded(documents: Any, images: ImageEncoder, process: Process) -> Iterator[EncodedImage]:
    """The images that can be used, in the order of the dataset, on the first process."""
    from hekaton_flux.shared_out import encoded_together

    for indices in _groups(range(len(documents)), _FETCHED * process.world_size):
        mine = documents.fetch(indices[process.rank :: process.world_size])
        yield from encoded_together(mine, images)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
