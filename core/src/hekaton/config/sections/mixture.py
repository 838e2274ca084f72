"""The section of the dataset ``mixture``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from hekaton.config.base import AtResumeMeaning, NameOf, PathField, SectionModel, Title
from hekaton.contributions import Dataset

Weight = Annotated[float, Field(ge=0, le=1e9)]


class LaterWeight(SectionModel):
    """A weight that holds from some step on."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    step: PositiveInt = 1
    """Steps done before the first one that it holds in."""
    weight: Weight = 1.0
    """The weight from then on."""


class MixtureSource(SectionModel):
    """One dataset of a mixture: an entry of ``[[mixture.sources]]``."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    name: Title = ""
    """Its name in the log; that of its dataset when not set."""
    weight: Weight = 1.0
    """Its share of the tokens, relative to the weights of the others."""
    dataset: Annotated[str, NameOf(Dataset)] = ""
    """The dataset, by name."""
    dataset_path: PathField | None = None
    """Where its files are, for datasets that take a path."""
    later: list[LaterWeight] = []
    """Other weights from some steps on."""
    max_epochs: PositiveInt | None = None
    """How often it is read at most."""
    settings: dict[str, Any] = {}
    """Values in place of those of the dataset's own section."""


class MixtureSection(SectionModel):
    """What ``dataset = "mixture"`` is made of."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    sources: list[MixtureSource] = []
    """The datasets, with ``dataset``, ``dataset_path``, ``weight`` (of tokens), ``later`` (weights by step),
    ``max_epochs``, ``name`` and ``settings``."""
    when_a_source_ends: Literal["renormalize", "stop"] = "renormalize"
    """What happens when a source was read ``max_epochs`` times: the others take its share, or the run saves
    and stops."""
