"""The section of the dataset ``tokens``."""

from typing import Literal

from hekaton.config.base import SectionModel


class TokensDatasetSection(SectionModel):
    """What files are that say nothing of themselves; corpora, ``.npy`` and ``.idx`` say it."""

    dtype: Literal["uint16", "uint32"] = "uint16"
    """Of the ids in raw ``.bin`` files."""
