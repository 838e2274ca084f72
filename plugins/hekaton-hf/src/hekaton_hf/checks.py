"""What a check of a configuration sees ahead of a run: files of a dataset, and what an export takes along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.contributions import HFAdapter
from hekaton.errors import DataError, HekatonError
from hekaton_hf.files import FoundFiles, find_files

if TYPE_CHECKING:
    from hekaton.rules import Run


def check_text(section: Any, path: str | None, *, here: bool = True) -> None:
    """The files of dataset ``text`` are there. They are not read.

    :raises DataError: when there are none.
    """
    if here or not path:
        files_of_text(path)


def check_chat(section: Any, path: str | None, *, here: bool = True) -> None:
    """As :func:`check_text`, of dataset ``chat``."""
    if here or not path:
        files_of_text(path, dataset="chat")


def assets_can_be_exported(run: Run) -> Iterator[HekatonError]:
    """The files that the last save copies beside the weights: found wrong then, the export would be missing
    at the end of a run."""
    checkpoint, model = run.config.checkpoint, run.config.model
    if not (run.here and checkpoint.enable and checkpoint.last_save_in_hf and model.hf_assets_path):
        return
    from hekaton_hf.assets import check_assets

    adapter = run.plugins.all(HFAdapter).get(model.name)
    try:
        config = (
            adapter.record.write_config.function()(run.model) if adapter and run.model is not None else {}
        )
        check_assets(Path(model.hf_assets_path), config)
    except HekatonError as e:
        yield run.violation(e.message, "model.hf_assets_path", "checkpoint.last_save_in_hf", hint=e.hint)


def files_of_text(path: str | None, *, dataset: str = "text") -> FoundFiles:
    """The files that dataset ``text`` or ``chat`` reads; see :func:`hekaton_hf.files.find_files`.

    :raises DataError: when there are none.
    """
    if not path:
        raise DataError(
            f"dataset '{dataset}' needs files to read",
            hint='set dataset_path, for example dataset_path = "data/*.jsonl"',
        )
    return find_files(path)
