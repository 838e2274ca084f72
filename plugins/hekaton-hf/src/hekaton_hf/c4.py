"""C4, the English part: from a local copy, or downloaded whole from the hub (train: 305 GB)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hekaton.errors import DataError
from hekaton_hf.files import DataFile, FoundFiles, find_files
from hekaton_hf.text import Texts, read_texts

HUB = "allenai/c4"
SECONDS_TO_ANSWER = 10.0
TEST_FOLDER = "tests/assets/c4_test"
"""Where torchtitan's repository has it."""


def check(section: Any, path: str | None, *, here: bool = True) -> None:
    """What is read of a local copy is there; what is downloaded is asked for when a run starts.

    :raises DataError: when there is none.
    """
    if here and path:
        find_files(path)


def check_test(section: Any, path: str | None, *, here: bool = True) -> None:
    """As :func:`check`, of ``c4_test``.

    :raises DataError: when there is no folder.
    """
    if here:
        find_files(_test_folder(path))


def build_train(section: Any, path: str | None) -> Texts:
    """``c4``: the train split."""
    return _local("train", path) if path else _from_hub("train")


def build_validation(section: Any, path: str | None) -> Texts:
    """``c4_validation``: the validation split."""
    return _local("validation", path) if path else _from_hub("validation")


def build_test(section: Any, path: str | None) -> Texts:
    """``c4_test``: what is in a local folder, that of torchtitan's tests unless ``dataset_path`` is set."""
    return read_texts(find_files(_test_folder(path)))


def _test_folder(path: str | None) -> str:
    if path is None and not Path(TEST_FOLDER).is_dir():
        raise DataError(
            f"dataset 'c4_test' is not here: there is no folder '{TEST_FOLDER}'",
            hint="set dataset_path to the folder c4_test of torchtitan's tests/assets, "
            'or set dataset = "python_stdlib"',
        )
    return path or TEST_FOLDER


def _local(split: str, path: str) -> Texts:
    """A copy of the hub's repository or of its folder ``en``, of which we take the split; or any files."""
    for folder in (Path(path, "en"), Path(path)):
        files = sorted(folder.glob(f"c4-{split}.*.json.gz"))
        if files:
            return read_texts(FoundFiles([DataFile(file.absolute()) for file in files]))
    return read_texts(find_files(path))


def _from_hub(split: str) -> Texts:
    try:
        files = _downloaded(split)
    except Exception as e:  # offline, not found, no space: each layer below has errors of its own
        name = "c4" if split == "train" else "c4_validation"
        said = str(e).strip().splitlines() or [type(e).__name__]
        raise DataError(
            f"cannot get dataset '{name}' ({HUB}, en, {split}): {said[0]}",
            hint="it is downloaded from the Hugging Face hub; set dataset_path to read a local copy, "
            'or set dataset = "python_stdlib"',
        ) from e
    return read_texts(FoundFiles([DataFile(file) for file in files]))


def _downloaded(split: str) -> list[Path]:
    """The files of a split, after downloading those that are not in the cache of the hub's client yet.

    Whether the hub can be reached is asked once, with one request: a client's own retries may take minutes.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    pattern = f"en/c4-{split}.*.json.gz"
    try:
        info = HfApi().dataset_info(HUB, timeout=SECONDS_TO_ANSWER)
    except (HTTPError, OfflineModeIsEnabled) as e:
        try:
            folder = snapshot_download(
                HUB, repo_type="dataset", allow_patterns=pattern, local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise e from None
        files = sorted(Path(folder).glob(pattern))
        if not _are_complete(files):
            raise
        return files
    names = sorted(file.rfilename for file in info.siblings or [] if fnmatchcase(file.rfilename, pattern))
    return [Path(hf_hub_download(HUB, name, repo_type="dataset", revision=info.sha)) for name in names]


def _are_complete(files: Sequence[Path]) -> bool:
    """Whether there are as many as their names say: ``c4-x.00000-of-00002.json.gz`` is the first of two."""
    return bool(files) and all(f"-of-{len(files):05}." in file.name for file in files)
