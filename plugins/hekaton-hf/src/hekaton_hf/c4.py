"""C4, the English part: from a local copy, or downloaded whole from the hub (train: 305 GB)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import datasets

from hekaton.errors import DataError
from hekaton_hf.files import find_files
from hekaton_hf.text import Texts, quiet_datasets, read_texts

HUB = "allenai/c4"
TEST_FOLDER = "tests/assets/c4_test"
"""Where torchtitan's repository has it."""


def build_train(section: Any, path: str | None) -> Texts:
    """``c4``: the train split."""
    return _local("train", path) if path else _from_hub("train")


def build_validation(section: Any, path: str | None) -> Texts:
    """``c4_validation``: the validation split."""
    return _local("validation", path) if path else _from_hub("validation")


def build_test(section: Any, path: str | None) -> Texts:
    """``c4_test``: what is in a local folder, that of torchtitan's tests unless ``dataset_path`` is set."""
    if path is None and not Path(TEST_FOLDER).is_dir():
        raise DataError(
            f"dataset 'c4_test' is not here: there is no folder '{TEST_FOLDER}'",
            hint="set dataset_path to the folder c4_test of torchtitan's tests/assets, "
            'or set dataset = "python_stdlib"',
        )
    return read_texts(find_files(path or TEST_FOLDER))


def _local(split: str, path: str) -> Texts:
    """A copy of the hub's repository or of its folder ``en``, of which we take the split; or any files."""
    for folder in (Path(path, "en"), Path(path)):
        files = sorted(folder.glob(f"c4-{split}.*.json.gz"))
        if files:
            return read_texts([file.absolute() for file in files])
    return read_texts(find_files(path))


def _from_hub(split: str) -> Texts:
    try:
        with quiet_datasets():
            loaded = datasets.load_dataset(HUB, "en", split=split)
    except Exception as e:  # offline, not found, no space: each layer below has errors of its own
        name = "c4" if split == "train" else "c4_validation"
        said = str(e).strip().splitlines() or [type(e).__name__]
        raise DataError(
            f"cannot get dataset '{name}' ({HUB}, en, {split}): {said[0]}",
            hint="it is downloaded from the Hugging Face hub; set dataset_path to read a local copy, "
            'or set dataset = "python_stdlib"',
        ) from e
    identity = f"{HUB}\0en\0{split}\0{len(loaded)}"
    return Texts([loaded.data.column("text")], hashlib.sha256(identity.encode()).hexdigest()[:32])
