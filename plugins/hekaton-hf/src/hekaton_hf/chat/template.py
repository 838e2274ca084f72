"""The chat template of a tokenizer: where it is, what it renders, and what of that the assistant says."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from hekaton.checkpoint.disk.folders import read_file
from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_hf.chat.contents import ContentPlace, places_of
from hekaton_hf.chat.conversations import ASSISTANT, Conversation
from hekaton_hf.chat.sandbox import MOST_CHARACTERS, Sandbox

MOST_BYTES = 1 << 20
"""Of a template."""
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STAND_IN = "\ue000\ue001"
"""Of private use areas: no content begins or ends with it."""
_FEW = 16
"""Turns that are found one by one: each renders the conversation again."""
_LAST = 8
"""Characters at the end of a turn, mostly of its end mark."""
_PROBES = 5
"""Of turns that look alike, how many are found one by one in any case."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


class RefusedError(ValueError):
    """A template does not take a conversation; says why."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    :param spans: begin and end of what is to be learned, in characters.
    """

    text: str
    spans: Sequence[tuple[int, int]]


class ChatTemplate:
    """Renders conversations."""

    def __init__(self, source: str, *, tokens: Mapping[str, str], date: datetime.date, origin: str) -> None:
        """:param tokens: ``bos_token`` and others, by name.
        :param date: what the template is told that it is: the same on every day of a run.
        :param origin: where it is from, for messages.
        :raises DataError: when it is no template.
        """
        self._sandbox = Sandbox(date=date)
        self._tokens = dict(tokens)
        self.origin = origin
        self.is_marked = bool(_MARKED.search(source))
        """Whether it marks itself what the assistant says."""
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as e:
            raise DataError(f"the chat template in {origin} is none: line {e.lineno}: {e.message}") from e
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as e:
            raise DataError(f"the chat template in {origin} is none: {type(e).__name__}: {e}") from e
        self.fingerprint = fingerprint(source, json.dumps(self._tokens, sort_keys=True), date.isoformat())

    def render(self, conversation: Conversation, *, turns: str = "each_turn") -> Rendered:
        """The text of a conversation, and what of it is learned.

        :param turns: ``each_turn`` of the assistant, or the ``last_turn``.
        :raises RefusedError: saying why, when the template does not take it, or does not show what the
            assistant says.
        """
        text, spans = self._text(conversation.messages, conversation.tools)
        if not self.is_marked:
            numbers = [at for at, one in enumerate(conversation.messages) if one["role"] == ASSISTANT]
            wanted = numbers[-1:] if turns == "last_turn" else numbers
            spans = self._turns(conversation, text, wanted)
        spans = [span for span in spans if span[0] < span[1]]
        return Rendered(text, spans[-1:] if turns == "last_turn" else spans)

    def prompt(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        """The text that an answer to a conversation follows.

        :param ask: end with what an answer begins with; otherwise with the words of the last message.
        :raises RefusedError: as :meth:`render`.
        """
        text, _ = self._text(messages, None, ask=ask)
        if ask:
            return text
        words = str(messages[-1].get("content", "")).strip()
        end = text.rfind(words)
        if not words or end < 0:
            raise RefusedError("its last message is not in its text, and cannot be continued")
        return text[: end + len(words)]

    def _text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, ask: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        sandbox, parts = self._sandbox, []
        sandbox.begin()
        try:
            for part in self._template.generate(
                messages=[_with_reasoning(message) for message in messages], tools=tools, documents=None,
                add_generation_prompt=ask, **self._tokens,
            ):  # fmt: skip
                parts.append(part)
                sandbox.length += len(part)
                if sandbox.length > MOST_CHARACTERS:
                    raise RefusedError(f"it makes more than {MOST_CHARACTERS:,} characters")
        except jinja2.TemplateError as e:
            raise RefusedError(e.message or type(e).__name__) from e
        except RefusedError:
            raise
        except Exception as e:  # what a template can raise has no bounds
            raise RefusedError(f"{type(e).__name__}: {e}") from e
        text = "".join(parts)
        if not all(text.startswith(said, start) for start, said in sandbox.marked):
            raise RefusedError(
                "{% generation %} marks text that is put out later, as in {% set %} or behind text of a macro"
            )
        return text, [(start, start + len(said)) for start, said in sandbox.marked]

    def _turns(self, conversation: Conversation, text: str, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Where turns are in the text, as :meth:`_turn` finds them one by one.

        Of many turns between the same texts of the template, some are found so; where all of these reach as
        far into the texts, the others do as well.
        """
        spans: dict[int, tuple[int, int]] = {}
        for places in self._alike(conversation, text, numbers):
            alike, reach = list(places), set()
            for probe in range(_PROBES):
                number = alike[probe * (len(alike) - 1) // (_PROBES - 1)]
                start, end = spans[number] = self._turn(conversation, text, number)
                reach.add((places[number].start - start, end - places[number].end))
            before, after = reach.pop()
            first = places[alike[0]]
            if reach or not (0 <= before <= len(first.before) and after <= len(first.after)):
                continue
            # Of a turn that calls tools its last characters, and what the template puts behind it.
            behind = text[first.end + after - _LAST : first.end] if after < 0 else ""
            spans |= {
                number: (place.start - before, place.end + after)
                for number, place in places.items()
                if text.endswith(behind, 0, place.end)
            }
        return [spans.get(number) or self._turn(conversation, text, number) for number in numbers]

    def _alike(
        self, conversation: Conversation, text: str, numbers: Sequence[int]
    ) -> Iterable[dict[int, ContentPlace]]:
        """Those of many turns that are between the same texts of the template."""
        if len(numbers) <= _FEW:
            return []
        try:
            places = places_of(
                conversation.messages, text, lambda messages: self._text(messages, conversation.tools)[0]
            )
        except RefusedError:  # it may not take the marks
            return []
        alike: dict[tuple[Any, ...], dict[int, ContentPlace]] = {}
        for number in numbers:
            if number in places:
                place = places[number]
                alike.setdefault((place.before, place.after, place.kind), {})[number] = place
        return [its for its in alike.values() if len(its) > _PROBES]

    def _turn(self, conversation: Conversation, text: str, number: int) -> tuple[int, int]:
        """Where a turn of the assistant is in the text, its end mark included, and no prompt before it."""
        messages, tools = conversation.messages, conversation.tools
        try:
            before, _ = self._text(messages[:number], tools, ask=True)
            after, _ = self._text(messages[: number + 1], tools)
        except RefusedError:  # it may not take a conversation that ends there
            before = after = _STAND_IN
        if text.startswith(before) and text.startswith(after) and len(before) < len(after):
            return len(before), len(before) + self._marked_end(text[len(before) : len(after)])
        content = messages[number].get("content")
        if isinstance(content, str) and content:
            stands = [*messages]
            stands[number] = {**messages[number], "content": _STAND_IN}
            other, _ = self._text(stands, tools)
            start = _common(text, other)
            end = len(text) - _common(text[: start - 1 : -1] if start else text[::-1], other[::-1])
            if _STAND_IN in other and start < end:
                return start, end + self._mark_after(text[end:])
        raise RefusedError(
            f"what the assistant says in message {number + 1} cannot be found in its text: mark it in the "
            "template with {% generation %} and {% endgeneration %}"
        )

    def _marked_end(self, said: str) -> int:
        """The end of a turn, without the white space behind its end mark."""
        stripped = said.rstrip()
        marks = (token for token in self._tokens.values() if token)
        ends = any(stripped.endswith(mark) for mark in marks) or bool(_MARK_AT_END.search(stripped))
        return len(stripped) if ends else len(said)

    def _mark_after(self, text: str) -> int:
        """The length of the mark that a text begins with."""
        marks = [token for token in self._tokens.values() if token and text.startswith(token)]
        found = _MARK_AT_START.match(text)
        return max([len(mark) for mark in marks] + [found.end() if found else 0])


_MARK_AT_END = re.compile(r"(<\|?[^<>\s]{1,40}\|?>|\[/?[A-Z_]{1,30}\])$")
_MARK_AT_START = re.compile(r"<\|?[^<>\s]{1,40}\|?>|\[/?[A-Z_]{1,30}\]")
"""What end marks look like: ``<|im_end|>``, ``<end_of_turn>``, ``</s>``, ``[/INST]``."""


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Reasoning under the names that templates read."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def find_template(folder: Path | None, given: str | None, *, with_tools: bool) -> tuple[str, str]:
    """The source of a template, and where it is from.

    :param folder: of the tokenizer.
    :param given: a file in place of the tokenizer's own.
    :raises DataError: when there is none.
    """
    if given is not None:
        return _read(Path(given)), f"'{given}'"
    own = folder / "chat_template.jinja" if folder is not None else None
    if own is not None and own.is_file():
        return _read(own), f"'{own}'"
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = folder / name if folder is not None else None
        if file is None or not file.is_file():
            continue
        try:
            found = json.loads(read_file(file, limit=1 << 28)).get("chat_template")
        except (OSError, ValueError, RecursionError, AttributeError) as e:
            raise DataError(f"cannot read '{file}': {e}", origin="model.hf_assets_path") from e
        if isinstance(found, list):
            by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = (
                by_name.get("tool_use") if with_tools and "tool_use" in by_name else by_name.get("default")
            )
        if isinstance(found, str):
            if len(found) > MOST_BYTES:
                raise DataError(f"the chat template in '{file}' has more than {MOST_BYTES:,} characters")
            return found, f"'{file}'"
    raise DataError(
        "dataset 'chat' needs a chat template, and the tokenizer has none",
        hint="set chat_dataset.template to a file with one, or model.hf_assets_path to the tokenizer of a "
        "model that chats",
    )


def _read(file: Path) -> str:
    try:
        return read_file(file, limit=MOST_BYTES).decode()
    except OSError as e:
        raise DataError(f"cannot read '{file}': {e.strerror or e}", origin="chat_dataset.template") from e
    except ValueError as e:
        raise DataError(f"cannot read '{file}': {e}", origin="chat_dataset.template") from e
