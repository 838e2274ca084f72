"""The section of the objective ``multi_token``."""

from typing import Annotated, ClassVar

from pydantic import Field

from hekaton.config.base import AtResumeMeaning, SectionModel


class MultiTokenSection(SectionModel):
    """The objective ``multi_token``, which has the model predict the token after the next as well."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    weight: Annotated[float, Field(gt=0, le=100)] = 0.3
    """Weight of the loss of the second token; DeepSeek V3 was trained with 0.3, and with 0.1 at the end."""
