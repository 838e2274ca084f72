"""Conversations as the texts that a model is asked with."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hekaton.errors import DataError
from hekaton_hf.chat.template import ChatTemplate, RefusedError, find_template
from hekaton_hf.tokenizer import special_tokens


def template_source(folder: Path | None) -> str:
    """The chat template of a tokenizer's folder.

    :raises DataError: where there is none.
    """
    try:
        return find_template(folder, None, with_tools=False)[0]
    except DataError as error:
        if error.origin:
            raise
        raise DataError(
            f"the tokenizer in '{folder}' has no chat template", hint="evaluate without a chat template"
        ) from error


def rendered(folder: Path | None, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
    """:param ask: see :meth:`hekaton.data.RendersChats.render_chat`.
    :raises DataError: where there is no template, or it refuses the conversation.
    """
    template = _template(folder)
    try:
        return template.prompt(messages, ask=ask)
    except RefusedError as error:
        raise DataError(f"the chat template in {template.origin} refuses a conversation: {error}") from error


@lru_cache(maxsize=4)
def _template(folder: Path | None) -> ChatTemplate:
    source = template_source(folder)
    tokens = special_tokens(folder) if folder is not None else {}
    return ChatTemplate(source, tokens=tokens, date=datetime.date.today(), origin=f"'{folder}'")
