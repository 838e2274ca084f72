"""Rules of the data: datasets that exist, and nothing set that no dataset reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hekaton.contributions import Dataset
from hekaton.data.mixture import build
from hekaton.errors import HekatonError
from hekaton.rules.run import Run


def mixture_holds_together(run: Run) -> Iterator[HekatonError]:
    """A mixture has sources that exist, and weights; sources are set for a mixture only."""
    training, validation = run.config.training, run.config.validation
    users: list[Any] = [training, *([validation] if validation.enable else [])]
    using = [section for section in users if section.dataset == "mixture"]
    section: Any = run.config.section("mixture")
    if not using:
        if section.sources:
            yield run.violation(
                f"[[mixture.sources]] has {len(section.sources)} entries, but training.dataset = "
                f"'{training.dataset}' does not read them",
                "mixture.sources",
                "training.dataset",
                hint='set training.dataset = "mixture", or leave the sources out',
            )
        return
    try:
        for mixture in (build(section, one.dataset_path) for one in using):
            for entry in mixture.entries:
                run.plugins.get(Dataset, entry.dataset)
    except HekatonError as e:
        yield run.violation(e.message, "mixture.sources", "training.dataset", hint=e.hint)
