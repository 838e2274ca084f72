"""Conversations to token ids, of which those that the assistant says are to be learned."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from hekaton.data import Encoded, KnowsPlaces, TextTokenizer, Whole
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_hf.chat.dataset import Chat
from hekaton_hf.chat.sections import ChatDatasetSection
from hekaton_hf.chat.template import ChatTemplate, RefusedError, find_template
from hekaton_hf.tokenizer import special_tokens

log = logging.getLogger("hekaton")

_EMPTY = Encoded(np.zeros(0, np.int32))


class ChatEncoder:
    """Renders a conversation, and encodes the text without marks of its own: the template has them.

    A conversation of which nothing is to be learned has no tokens, and is skipped.
    """

    def __init__(self, tokenizer: TextTokenizer, section: ChatDatasetSection) -> None:
        """:raises DataError: where there is no template, or a tokenizer that cannot say which characters its
        tokens stand for.
        """
        self._tokenizer = _that_knows_places(tokenizer)
        self._section = section
        self._plain, self._with_tools = _templates(tokenizer, section)
        if not self._plain.is_marked:
            log.info(
                "notice: the chat template in %s has no {%% generation %%} around what the assistant says: "
                "its turns are found by rendering conversations that end with them", self._plain.origin,
            )  # fmt: skip
        self.fingerprint = fingerprint(
            "chat", self._plain.fingerprint, self._with_tools.fingerprint, section.targets,
            str(section.max_tokens), section.too_long if section.max_tokens else "",
        )  # fmt: skip

    def cut(self, document: Chat) -> Iterator[Whole]:
        yield Whole(document, size=document.size)

    def encode(self, parts: Sequence[Whole]) -> list[Encoded]:
        """:raises DataError: naming file and line of a conversation that the template refuses."""
        return [self._encode(part.content) for part in parts]

    def _encode(self, chat: Chat) -> Encoded:
        if chat.conversation is None:
            return _EMPTY
        template = self._with_tools if chat.conversation.tools else self._plain
        try:
            rendered = template.render(chat.conversation, turns=self._section.targets)
        except RefusedError as e:
            raise DataError(
                f"{chat.where()}: the chat template in {template.origin} refuses the conversation: {e}",
                hint="repair or remove it, or set chat_dataset.template",
            ) from e
        ids, places = self._tokenizer.encode_places(rendered.text)
        targets = targets_of(places, rendered.spans)
        most = self._section.max_tokens
        if most is not None and len(ids) > most:
            match self._section.too_long:
                case "cut_end":
                    ids, targets = ids[:most], targets[:most]
                case "cut_start":
                    ids, targets = ids[-most:], targets[-most:]
                case "skip":
                    return _EMPTY
                case "error":
                    raise DataError(
                        f"{chat.where()}: the conversation has {len(ids):,} tokens, and "
                        f"chat_dataset.max_tokens = {most:,}",
                        hint="set chat_dataset.too_long to cut_end, cut_start or skip",
                    )
        # The first token of a document is predicted by nothing.
        return Encoded(ids, targets) if targets[1:].any() else _EMPTY


def _that_knows_places(tokenizer: TextTokenizer) -> KnowsPlaces:
    if not isinstance(tokenizer, KnowsPlaces):
        raise DataError(
            "dataset 'chat' needs a tokenizer that knows which characters its tokens stand for",
            hint='choose model.tokenizer = "hf", or "byte"',
        )
    return tokenizer


def _templates(tokenizer: TextTokenizer, section: ChatDatasetSection) -> tuple[ChatTemplate, ChatTemplate]:
    """The template of conversations without tools, and that of those with tools."""
    folder = getattr(tokenizer, "folder", None)
    tokens = special_tokens(folder) if folder is not None else {}
    date = datetime.date.fromisoformat(section.date)

    def template(*, with_tools: bool) -> ChatTemplate:
        source, origin = find_template(folder, section.template, with_tools=with_tools)
        return ChatTemplate(source, tokens=tokens, date=date, origin=origin)

    return template(with_tools=False), template(with_tools=True)


def targets_of(places: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens overlap a span.

    :param places: (n, 2) first and last character of each token, the last excluded.
    """
    if not spans:
        return np.zeros(len(places), np.bool_)
    starts, ends = np.array(sorted(spans)).T
    # Of the spans that begin before a token ends, does any end behind its beginning?
    begun = starts.searchsorted(places[:, 1])
    furthest = np.concatenate([[0], np.maximum.accumulate(ends)])[begun]
    targets: np.ndarray = furthest > places[:, 0]
    return targets


def check(section: ChatDatasetSection, tokenizer: TextTokenizer) -> None:
    """What :func:`build` would raise."""
    _that_knows_places(tokenizer)
    _templates(tokenizer, section)


def build(section: ChatDatasetSection, tokenizer: TextTokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer, section)
