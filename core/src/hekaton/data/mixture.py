"""Dataset ``mixture``: several datasets, of which each row reads one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hekaton.data import Documents, KnownFiles
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError


@dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """One dataset of a mixture.

    :param weights: step from which on it holds -> its weight; the first is step 0.
    :param max_epochs: how often it is read at most.
    :param settings: values in place of those of the dataset's own section.
    """

    name: str
    dataset: str
    path: str | None
    weights: Mapping[int, float]
    max_epochs: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Mixture:
    """Several datasets as one: their documents one after the other."""

    def __init__(self, entries: Sequence[MixtureEntry], *, stops: bool) -> None:
        """:param stops: whether a run ends when one of them does.
        :raises DataError: for weights that say nothing.
        """
        self.entries = entries
        self.stops = stops
        self.parts: Sequence[Documents] = ()
        self.fingerprint = "not opened"
        self.weights = _by_step(entries)

    def opened(self, open_one: Callable[[MixtureEntry], Documents]) -> Mixture:
        """The mixture with its datasets opened.

        :raises DataError: for one that has no documents.
        """
        mixture = Mixture(self.entries, stops=self.stops)
        mixture.parts = [open_one(entry) for entry in self.entries]
        for entry, part in zip(self.entries, mixture.parts, strict=True):
            if len(part) == 0:
                raise DataError(f"source '{entry.name}' is empty: it has no documents")
        mixture.fingerprint = fingerprint(*(part.fingerprint for part in mixture.parts))
        return mixture

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        ends = np.cumsum([len(part) for part in self.parts])
        found = np.searchsorted(ends, indices, side="right").tolist()
        return [
            self.parts[number].fetch([index - int(ends[number]) + len(self.parts[number])])[0]
            for number, index in zip(found, indices, strict=True)
        ]

    def files(self) -> dict[str, str]:
        """The files of each dataset below its name."""
        return {
            f"{entry.name}: {name}": content
            for entry, part in zip(self.entries, self.parts, strict=True)
            if isinstance(part, KnownFiles)
            for name, content in part.files().items()
        }


def build(section: Any, path: str | None) -> Mixture:
    """The mixture that ``[[mixture.sources]]`` describes, not opened yet.

    :raises DataError: for one without sources, or given a path.
    """
    if path is not None:
        raise DataError(
            f"dataset 'mixture' takes no dataset_path, but it is set to '{path}'",
            hint="each entry of [[mixture.sources]] has its own dataset_path",
        )
    if not section.sources:
        raise DataError(
            "dataset 'mixture' has no sources",
            hint="add entries of [[mixture.sources]] with dataset and weight",
        )
    for number, source in enumerate(section.sources, 1):
        if not source.dataset:
            raise DataError(f"entry {number} of [[mixture.sources]] names no dataset")
        if source.dataset == "mixture":
            raise DataError("a mixture cannot be a source of a mixture", hint="list its sources instead")
    for number, source in enumerate(section.sources, 1):
        steps = Counter(later.step for later in source.later)
        twice = next((step for step, times in steps.items() if times > 1), None)
        if twice is not None:
            raise DataError(f"entry {number} of [[mixture.sources]] has two weights from step {twice} on")
    names = _names([source.name or source.dataset for source in section.sources])
    entries = [
        MixtureEntry(
            name=name,
            dataset=source.dataset,
            path=source.dataset_path,
            weights={0: source.weight, **{later.step: later.weight for later in source.later}},
            max_epochs=source.max_epochs,
            settings=source.settings,
        )
        for name, source in zip(names, section.sources, strict=True)
    ]
    return Mixture(entries, stops=section.when_a_source_ends == "stop")


def _names(names: Sequence[str]) -> list[str]:
    """The names, with a number where several are the same.

    :raises DataError: where that gives one that another source has.
    """
    counts = Counter(names)
    met: Counter[str] = Counter()
    different = []
    for name in names:
        met[name] += 1
        different.append(f"{name}-{met[name]}" if counts[name] > 1 else name)
    for name, times in Counter(different).items():
        if times > 1:
            raise DataError(
                f"two sources of the mixture would be called '{name}'", hint="give each a name of its own"
            )
    return different


def _by_step(entries: Sequence[MixtureEntry]) -> dict[int, list[float]]:
    """Step -> the weight of each source from then on.

    :raises DataError: where all are 0.
    """
    steps = sorted({step for entry in entries for step in entry.weights})
    weights = {
        step: [entry.weights[max(one for one in entry.weights if one <= step)] for entry in entries]
        for step in steps
    }
    for step, of_step in weights.items():
        if not sum(of_step) > 0:
            since = f" from step {step + 1} on" if step else ""
            raise DataError(
                f"the weights of all sources of the mixture are 0{since}",
                hint="give a source a weight above 0: mixture.sources",
            )
    return weights
