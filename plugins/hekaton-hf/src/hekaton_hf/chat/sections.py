"""The section of the dataset ``chat``."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from hekaton.config import SectionModel
from hekaton.config.base import OnlyWith, PathField


def _date(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


class ChatDatasetSection(SectionModel):
    """What conversations are, and what of them is learned."""

    form: Literal["auto", "messages", "sharegpt", "alpaca"] = "auto"
    """How a row has its conversation: a list ``messages`` of ``role`` and ``content``; ShareGPT's
    ``conversations`` of ``from`` and ``value``; Alpaca's ``instruction``, ``input`` and ``output``. ``auto``
    looks at the columns of each row."""
    messages_column: str = ""
    """Column of the list of messages; when not set, the one that is usual for the form."""
    template: PathField | None = None
    """A file with the chat template (jinja2); when not set, the tokenizer's own."""
    targets: Literal["each_turn", "last_turn"] = "each_turn"
    """Which turns of the assistant are learned."""
    max_tokens: PositiveInt | None = None
    """Tokens that a conversation may have."""
    too_long: Annotated[Literal["cut_end", "cut_start", "skip", "error"], OnlyWith("max_tokens")] = "cut_end"
    """What becomes of a longer one: its end or its start is cut off, it is skipped, or it ends the run."""
    date: Annotated[str, AfterValidator(_date)] = "2024-07-26"
    """The day that templates are told that it is, so that the tokens are the same on every day."""
    max_bad_rows: int = Field(default=0, ge=0)
    """Rows without a conversation that can be read are skipped, counted and named, up to this number of them
    in all files; one more ends the run before its first step."""
