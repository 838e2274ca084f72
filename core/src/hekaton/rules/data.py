"""Rules of the data: datasets that exist, and nothing set that no dataset reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hekaton.contributions import Dataset
from hekaton.data.mixture import build
from hekaton.errors import HekatonError
from hekaton.rules.run import Run


def validation_sets_hold_together(run: Run) -> Iterator[HekatonError]:
    """Sets have datasets and different names, and nothing is set that they take the place of."""
    validation = run.config.validation
    if not validation.enable or not validation.sets:
        return
    names = [one.name or one.dataset for one in validation.sets]
    for number, (one, name) in enumerate(zip(validation.sets, names, strict=True), 1):
        entry = f"entry {number} of [[validation.sets]]"
        if not one.dataset:
            yield run.violation(f"{entry} names no dataset", "validation.sets")
            continue
        if one.dataset == "mixture":
            yield run.violation(
                f"{entry}: a mixture is no set", "validation.sets", hint="make each of its sources a set"
            )
        if names.index(name) != number - 1:
            yield run.violation(
                f"{entry} has the name '{name}' of another one", "validation.sets",
                hint="give each a name of its own: name",
            )  # fmt: skip
        try:
            run.plugins.get(Dataset, one.dataset)
        except HekatonError as e:
            yield run.violation(f"{entry}: {e.message}", "validation.sets", hint=e.hint)
    for field in ("dataset", "dataset_path", "steps"):
        if run.is_set(f"validation.{field}"):
            yield run.violation(
                f"validation.{field} is set, but [[validation.sets]] take its place",
                f"validation.{field}",
                hint=f"leave it out, or make it an entry of [[validation.sets]] with its own {field}",
            )


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
