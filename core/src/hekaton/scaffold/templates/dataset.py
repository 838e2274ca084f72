"""The dataset: texts with random access. Order, tokens, packing and resuming are hekaton's."""

from __future__ import annotations

from collections.abc import Sequence

from hekaton.scaffold.templates.settings import DatasetSection


class Sums:
    """Every sum of two numbers from 1 up to the largest."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.fingerprint = f"sums up to {largest}"  # changes when the documents do

    def __len__(self) -> int:
        return self.largest**2

    def fetch(self, indices: Sequence[int]) -> list[str]:
        """The documents at ``indices``, in the order asked for."""
        pairs = (divmod(int(index), self.largest) for index in indices)
        return [f"{a + 1} + {b + 1} = {a + b + 2}\n" for a, b in pairs]


def build(section: DatasetSection, path: str | None) -> Sums:
    """:param path: ``training.dataset_path``, which this dataset does not need."""
    return Sums(section.largest)
