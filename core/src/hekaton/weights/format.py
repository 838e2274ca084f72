"""What a checkpoint format's ``build`` returns, and what it reads and writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hekaton.weights.facts import ModelFacts
from hekaton.weights.lazy import LazyTensor

if TYPE_CHECKING:
    from hekaton.draft import Merge
    from hekaton.weights.table import WeightTable


@dataclass(frozen=True, kw_only=True)
class Unmerged:
    """A converted model, for formats that write what a converter added by itself.

    :param merges: how tensors of the model as it was are made from ``tensors``.
    :param table: which tensor of the model as it was is which of ``Weights.tensors``.
    :param tensors: the model's own, by their own names.
    :param base: the folder in another layout that the run started from, where it did.
    """

    merges: Sequence[Merge]
    table: WeightTable
    tensors: Mapping[str, LazyTensor]
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model in another layout.

    :param config: the content of its ``config.json``.
    :param tensors: by name; none of them is read yet.
    :param generation: the content of its ``generation_config.json``, where it has one. Only read.
    :param absent: names that the folder lists, and does not hold. Only read.
    :param facts: what is known of the model beside that; it counts more than ``config``. Only written.
    :param unmerged: what ``tensors`` were merged from. Only written.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    generation: Mapping[str, Any] = field(default_factory=dict)
    absent: Collection[str] = ()
    facts: ModelFacts = field(default_factory=ModelFacts)
    unmerged: Unmerged | None = None


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How weights are written.

    :param assets: a folder with the tokenizer's files, to be copied.
    :param max_shard_size: bytes of tensors in one file, at most; one tensor may be larger.
    :param rank: of ``ranks`` processes that write together, each its share of the files. Rank 0 writes the
        rest. Nobody waits for anybody here.
    """

    assets: Path | None = None
    max_shard_size: int = 5_000_000_000
    rank: int = 0
    ranks: int = 1


class WeightFormat(Protocol):
    """Reads and writes folders of one format."""

    def open(self, folder: Path) -> Weights:
        """Look at ``folder``, without reading tensors.

        :raises CheckpointError: when it is not of this format, or not whole.
        """

    def write(self, folder: Path, weights: Weights, options: WriteOptions) -> None:
        """Write into an empty folder, one tensor at a time. Whatever makes the folder look whole comes last.

        :raises CheckpointError: when the disk refuses.
        """


@runtime_checkable
class HoldsPart(Protocol):
    """What a format also has that holds a part of a model, such as adapters; its ``open`` raises."""

    def part_of(self, weights: Weights) -> Mapping[str, LazyTensor]:
        """The tensors that ``write`` writes of a model, by their names in the folder.

        :raises CheckpointError: for a model that has no such part.
        """

    def open_part(self, folder: Path) -> Mapping[str, LazyTensor]:
        """The tensors of a folder, by these names, none of them read yet.

        :raises CheckpointError: when it is not of this format, or not whole.
        """
