"""The section of the dataset ``tokens``."""

from typing import ClassVar, Literal

from hekaton.config.base import AtResumeMeaning, SectionModel


class TokensDatasetSection(SectionModel):
    """What files are that say nothing of themselves; corpora, ``.npy`` and ``.idx`` say it."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    dtype: Literal["uint16", "uint32"] = "uint16"
    """Of the ids in raw ``.bin`` files."""
