"""Where the contents of messages stand in the text of a conversation, and what the template puts around them.

Finding a turn by rendering the conversation up to it takes time by the square of the number of turns. Here it
is rendered once, with a mark in place of each content: what is between the marks is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hekaton_hf.chat.sandbox import MOST_CHARACTERS

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Of private use areas. Between them is the number of a message."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


@dataclass(frozen=True)
class ContentPlace:
    """A content in the text.

    :param before: what the template puts between the content before it and this one, and ``after`` what it
        puts between this one and the next. Of a turn that calls tools, ``end`` is where the next content
        begins, and ``after`` is empty.
    :param kind: what else a template can tell messages apart by: their neighbours' roles, and what they have.
    """

    start: int
    end: int
    before: str
    after: str
    kind: tuple[Any, ...] = ()


def places_of(
    messages: Sequence[Mapping[str, Any]],
    text: str,
    render: Callable[[Sequence[Mapping[str, Any]]], str],
) -> dict[int, ContentPlace]:
    """Number of a message -> where its content stands; none where that cannot be said of the whole text.

    :param text: of the messages, which ``render`` gave.
    """
    contents = {
        number: message["content"]
        for number, message in enumerate(messages)
        if isinstance(message.get("content"), str) and message["content"].strip()
    }
    if _OPEN in text or len(text) > MOST_CHARACTERS // 2:
        return {}
    marked = render(
        [
            {**message, "content": f"{_OPEN}{number}{_CLOSE}"} if number in contents else message
            for number, message in enumerate(messages)
        ]
    )
    first, *rest = _MARK.split(marked)
    numbers, gaps = [int(number) for number in rest[::2]], [first, *rest[1::2]]
    if numbers != list(contents) or not text.startswith(first):
        return {}
    places, at = {}, len(first)
    for number, before, after in zip(numbers, gaps, gaps[1:], strict=False):
        content = contents[number]
        for said in (content, content.strip(), content.rstrip(), content.lstrip()):
            end = at + len(said)
            if text.startswith(said, at) and text.startswith(after, end):
                break
        else:
            return {}
        places[number] = ContentPlace(at, end, before, after, _kind(messages, number))
        at = end + len(after)
    return {**places, **_calls(messages, text, places)} if at == len(text) else {}


def _calls(
    messages: Sequence[Mapping[str, Any]], text: str, places: Mapping[int, ContentPlace]
) -> dict[int, ContentPlace]:
    """Number of a message that calls tools -> its place: from its content, or else the name of the first
    tool, up to the next content."""
    ends = {len(messages): len(text)} | {number: place.start for number, place in places.items()}
    starts = {-1: 0} | {number: place.end for number, place in places.items()}
    calls = {}
    for number, message in enumerate(messages):
        name = _name_of_tool(message)
        if name is None or number + 1 not in ends:
            continue
        end = ends[number + 1]
        if number in places:
            start, before = places[number].start, places[number].before
        elif number - 1 in starts:
            start = text.find(name, starts[number - 1], end)
            before = text[starts[number - 1] : start]
            if start < 0:
                continue
        else:
            continue
        calls[number] = ContentPlace(start, end, before, "", _kind(messages, number))
    return calls


def _name_of_tool(message: Mapping[str, Any]) -> str | None:
    """Of the first tool that a message calls."""
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else None
    call = call.get("function", call) if isinstance(call, dict) else None
    name = call.get("name") if isinstance(call, dict) else None
    return name if isinstance(name, str) and name else None


def _kind(messages: Sequence[Mapping[str, Any]], number: int) -> tuple[Any, ...]:
    around = [
        messages[at].get("role") if 0 <= at < len(messages) else None for at in (number - 1, number + 1)
    ]
    return (*around, *sorted(name for name, value in messages[number].items() if value))
