"""The TOML sections: their fields are keys of the section and flags, their docstrings the help."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from hekaton.config import SectionModel


class DecoderSection(SectionModel):
    hidden_factor: PositiveInt | None = None
    """Width of the feed-forward layer, in units of the model's width; by default that of the flavor."""


class DatasetSection(SectionModel):
    largest: PositiveInt = 30
    """Both numbers of a sum go from 1 up to this."""


class EncoderSection(SectionModel):
    after: Annotated[str, Field(min_length=1)] = "="
    """What is learned of a text begins behind this."""


class ConverterSection(SectionModel):
    cap: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    """Logits stay between -cap and cap."""
    module: str = "output"
    """The linear layer that gives them."""


class ObjectiveSection(SectionModel):
    first: NonNegativeInt = 2
    """How many tokens of a document are read before one is predicted."""


class OptimizerSettings(SectionModel):
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Part of the moving average that a step keeps."""


class LoggerSection(SectionModel):
    file: Annotated[str, Field(min_length=1)] = "metrics.csv"
    """Name of the file in the folder of the run's logs."""


class JudgementSection(SectionModel):
    every: NonNegativeInt = 0
    """Steps from one evaluation to the next; 0 for none."""


class CheckSection(SectionModel):
    largest_lr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The highest ``optimizer.lr`` that runs may have; not set, any."""
