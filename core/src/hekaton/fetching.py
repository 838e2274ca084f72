"""The files of a checkpoint, or of a model in another format, where they lie behind a URL."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hekaton.checkpoint.disk.folders import Folder, reason_of
from hekaton.errors import CheckpointError, HekatonError


@contextlib.contextmanager
def fetched(folder: Folder) -> Iterator[Path]:
    """A folder of the disk; of one behind a URL, a copy of its files in a temporary folder of the same name,
    whose errors name the URL.

    Files that are removed meanwhile are not in the copy: what opens it says that it is not whole.

    :raises CheckpointError: when the store cannot be read.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hekaton-") as temporary:
        place = Path(temporary, folder.name)
        place.mkdir()
        try:
            with contextlib.suppress(FileNotFoundError):
                for name in folder.files():
                    with (folder / name).open() as source, (place / name).open("wb") as target:
                        shutil.copyfileobj(source, target, 2**24)
        except OSError as error:
            raise CheckpointError(f"cannot read '{folder}': {reason_of(error)}") from error
        try:
            yield place
        except HekatonError as error:
            name_source(error, place, folder)
            raise


def name_source(error: HekatonError, place: Path, folder: Folder) -> None:
    """Let an error about a copy name the folder that was copied."""
    error.message = error.message.replace(str(place), str(folder))
    error.hint = error.hint.replace(str(place), str(folder))
