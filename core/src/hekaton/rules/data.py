"""Rules of the data: datasets that exist, and nothing set that no dataset reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hekaton.components import section_of
from hekaton.config.base import toml_value
from hekaton.contributions import Dataset, Encoder, Objective, RowMaker
from hekaton.data import ChecksRows, HasNotices, TextTokenizer
from hekaton.data.mixture import build
from hekaton.errors import ConfigError, HekatonError
from hekaton.rules.run import Run
from hekaton.sources import check_tokenizer

FULL_ROWS = ("documents", "concat")
"""Row makers of which every row has as many tokens as any other."""


def datasets_can_be_read(run: Run) -> Iterator[HekatonError | str]:
    """What datasets are given can be read, as far as they say so ahead of a run."""
    for used in _used(run):
        contributed = run.plugins.all(Dataset).get(used.dataset)
        if contributed is None or used.dataset == "mixture":
            continue
        record: Any = contributed.record
        try:
            section = section_of(run.config, run.plugins, record, used.settings)
            found = record.check.function()(section, used.path, here=run.here) if record.check else None
            if isinstance(found, ChecksRows):
                found.check_rows(used.rows)
            if run.here and not isinstance(run.tokenizer, HekatonError):
                check_tokenizer(found, run.tokenizer)
                _check_encoder(run, record, used.settings, run.tokenizer)
            if isinstance(found, HasNotices):
                yield from (f"{used.what}{notice}" for notice in found.notices)
        except HekatonError as e:
            about = e.fields if isinstance(e, ConfigError) else ()
            yield run.violation(f"{used.what}{e.message}", *used.fields, *about, hint=e.hint)


def _check_encoder(run: Run, dataset: Dataset, settings: Mapping[str, Any], tokenizer: TextTokenizer) -> None:
    """:raises HekatonError: where the encoder of a dataset says that it cannot be built."""
    contributed = run.plugins.all(Encoder).get(dataset.encoder)
    if contributed is None or contributed.record.check is None:
        return
    record: Any = contributed.record
    shares = run.plugins.section_of(dataset) == run.plugins.section_of(record)
    section = section_of(run.config, run.plugins, record, settings if shares else {})
    record.check.function()(section, tokenizer)


def rows_are_made_of_what_datasets_give(run: Run) -> Iterator[HekatonError]:
    """The row maker takes what the encoder of each dataset gives, and the objective what it makes."""
    makers, name = run.plugins.all(RowMaker), run.config.training.packing
    if name not in makers:
        return
    takes = makers[name].record.takes
    trained_for = run.config.training.objective or ""
    if not trained_for and not isinstance(run.meta, HekatonError):
        trained_for = run.meta.spec.objective
    objective = run.plugins.all(Objective).get(trained_for)
    if objective is not None and objective.record.takes != takes:
        yield run.violation(
            f"training.packing = {toml_value(name)} makes rows of {takes}, and objective '{trained_for}' is "
            f"computed from {objective.record.takes}",
            "training.packing",
            "training.objective" if run.config.training.objective else "model.name",
        )
    for used in _used(run):
        contributed = run.plugins.all(Dataset).get(used.dataset)
        if contributed is None or used.dataset == "mixture":
            continue
        encoder = run.plugins.all(Encoder).get(contributed.record.encoder)
        if encoder is None or encoder.record.gives == takes:
            continue
        gives = encoder.record.gives
        fitting = [other for other, one in makers.items() if one.record.takes == gives]
        yield run.violation(
            f"training.packing = {toml_value(name)} makes rows of {takes}, and dataset '{used.dataset}' "
            f"gives {gives}",
            "training.packing",
            *used.fields,
            hint=f"row makers of {gives}: {', '.join(sorted(fitting)) or 'none'}",
        )


@dataclass(frozen=True)
class _Used:
    """A dataset of a run.

    :param fields: that set it.
    :param what: begins an error of it, where there are several in a field.
    :param rows: that read it, at least.
    """

    fields: Sequence[str]
    dataset: str
    path: str | None
    rows: int
    settings: Mapping[str, Any]
    what: str = ""


def _used(run: Run) -> Iterator[_Used]:
    """The datasets of a run."""
    training, validation = run.config.training, run.config.validation
    degree = run.data_parallel_degree or 1
    batch = max(training.global_batch_size, training.local_batch_size * degree)
    sections: dict[str, tuple[Any, int]] = {"training": (training, batch)}
    if validation.enable and not validation.sets:
        sections["validation"] = (validation, validation.local_batch_size * degree)
    entries: list[tuple[str, str, Any, int]] = []
    for name, (one, rows) in sections.items():
        yield _Used((f"{name}.dataset", f"{name}.dataset_path"), one.dataset, one.dataset_path, rows, {})
        if one.dataset == "mixture":
            mixture: Any = run.config.section("mixture")
            entries += [("mixture.sources", "source", entry, rows) for entry in mixture.sources]
    if validation.enable:
        # A set takes as many rows as it has documents, at most: one is enough.
        entries += [("validation.sets", "validation data", entry, 1) for entry in validation.sets]
    for field, kind, entry, rows in entries:
        what = f"{kind} '{entry.name or entry.dataset}': "
        yield _Used((field,), entry.dataset, entry.dataset_path, rows, entry.settings, what)


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


def mixture_holds_together(run: Run) -> Iterator[HekatonError | str]:
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
    packing = run.config.training.packing
    if packing not in FULL_ROWS and run.fixed_row is None:
        yield (
            f"training.packing = {toml_value(packing)} pads rows that documents do not fill: the weights of "
            "the mixture are shares of rows, and those of tokens are in the metrics"
        )
