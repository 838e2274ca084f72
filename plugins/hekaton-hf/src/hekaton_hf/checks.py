"""What a configuration check can see of a dataset: whether its files are there. They are not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hekaton.errors import DataError, HekatonError
from hekaton_hf.files import FoundFiles, find_files

if TYPE_CHECKING:
    from hekaton.rules import Run


def text_files_are_there(run: Run) -> Iterator[HekatonError]:
    """The files of dataset ``text``, where the run is to start on this machine."""
    sections = {"training": run.config.training, "validation": run.config.validation}
    if not run.config.validation.enable:
        del sections["validation"]
    for name, section in sections.items():
        if section.dataset == "text" and (run.here or not section.dataset_path):
            try:
                files_of_text(section.dataset_path)
            except DataError as e:
                yield run.violation(e.message, f"{name}.dataset", f"{name}.dataset_path", hint=e.hint)


def files_of_text(path: str | None) -> FoundFiles:
    """The files that dataset ``text`` reads; see :func:`hekaton_hf.files.find_files`.

    :raises DataError: when there are none.
    """
    if not path:
        raise DataError(
            "dataset 'text' needs files to read",
            hint='set dataset_path, for example dataset_path = "data/*.jsonl"',
        )
    return find_files(path)
