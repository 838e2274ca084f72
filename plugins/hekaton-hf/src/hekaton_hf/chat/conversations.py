"""Conversations in the forms that files have them in, and in the one that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hekaton_hf.decoding import clean, kind_of

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function", "ipython")
"""Of the form ``messages``; which of them a template takes is up to it."""
SPEAKERS = {
    "human": "user", "user": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "assistant": ASSISTANT,
    "model": ASSISTANT, "bot": ASSISTANT, "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip
"""Who speaks in the form of ShareGPT -> role."""
_ALPACA = ("instruction", "input", "output", "system", "history")
_PLAIN = json.JSONDecoder(strict=False)
_DEEPEST = 100
"""Lists and objects within one another in a message or a tool."""


@dataclass(frozen=True)
class Conversation:
    """What is said, and the tools that the assistant may call.

    :param messages: objects with ``role``, mostly ``content``, and what else the template knows.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None

    def to_json(self) -> str:
        return json.dumps({"messages": self.messages, "tools": self.tools}, ensure_ascii=False)


@dataclass(frozen=True)
class ConversationRows:
    """Reads the conversation of a row. Its text is JSON; empty where the assistant says nothing.

    :param form: ``messages``, ``sharegpt``, ``alpaca``, or ``auto``: what the columns of a row look like.
    :param column: of the messages; empty for the one that is usual for the form.
    """

    form: str
    column: str
    decoder: json.JSONDecoder = field(default=_PLAIN, repr=False)
    version: int = 2
    """Another one when rows are read differently: an index is named after it."""

    def columns(self, names: Sequence[str]) -> list[str]:
        form = self._form_of(names)
        if form is None:
            return []
        wanted = _ALPACA if form == "alpaca" else (self._column(form), "system", "tools")
        return [name for name in names if name in wanted]

    def document(self, row: dict[str, Any]) -> tuple[str, bool]:
        conversation, replaced = self.read(row)
        speaks = any(message["role"] == ASSISTANT for message in conversation.messages)
        return conversation.to_json() if speaks else "", replaced

    def read(self, row: Mapping[str, Any]) -> tuple[Conversation, bool]:
        """The conversation of a row, and whether something that is no text was replaced.

        :raises ValueError: naming the message that is none.
        """
        form = self._form_of(list(row))
        if form is None:
            raise ValueError(f"it has none of the columns {self.wanted}")
        if form == "alpaca":
            messages = _of_alpaca(row)
        else:
            messages = _of_list(row, self._column(form), sharegpt=form == "sharegpt")
        if not messages:
            raise ValueError("its conversation has no messages")
        tools = _tools(row.get("tools")) if form != "alpaca" else None
        cleaned, replaced = _cleaned(messages)
        cleaned_tools, replaced_in_tools = _cleaned(tools)
        return Conversation(cleaned, cleaned_tools), replaced or replaced_in_tools

    def _form_of(self, names: Sequence[str]) -> str | None:
        if self.form != "auto":
            needed = "instruction" if self.form == "alpaca" else self._column(self.form)
            return self.form if needed in names else None
        if self.column:
            return "messages" if self.column in names else None
        usual = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca"}
        return next((form for column, form in usual.items() if column in names), None)

    def _column(self, form: str) -> str:
        return self.column or ("conversations" if form == "sharegpt" else "messages")

    @property
    def wanted(self) -> str:
        """The columns of which it needs one."""
        if self.form == "auto" and not self.column:
            return "'messages', 'conversations' or 'instruction'"
        return f"'{'instruction' if self.form == 'alpaca' else self._column(self.form)}'"


def _of_list(row: Mapping[str, Any], column: str, *, sharegpt: bool) -> list[dict[str, Any]]:
    given = row[column]
    if isinstance(given, str):
        given = _parsed(given, f"'{column}'")
    if not isinstance(given, list):
        raise ValueError(f"'{column}' is not a list but {_kind(given)}")
    messages = [_message(one, number, sharegpt=sharegpt) for number, one in enumerate(given, 1)]
    system = row.get("system")
    if system:
        if not isinstance(system, str):
            raise ValueError(f"'system' is not text but {_kind(system)}")
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(given: Any, number: int, *, sharegpt: bool) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"message {number} is not an object but {_kind(given)}")
    message = {name: value for name, value in given.items() if value is not None}
    if sharegpt and "from" in message:
        speaker, content = message.pop("from"), message.pop("value", None)
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise ValueError(f"message {number} is from {_said(speaker)}: known are {', '.join(SPEAKERS)}")
        message = {"role": SPEAKERS[speaker], **message, **({} if content is None else {"content": content})}
    if "role" not in message:
        raise ValueError(f"message {number} has no role, but {', '.join(map(repr, message)) or 'nothing'}")
    role, content = message["role"], message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"message {number} has the role {_said(role)}: known are {', '.join(ROLES)}")
    if content is None and not message.get("tool_calls"):
        raise ValueError(f"message {number} ({role}) has no content")
    if content is not None and not isinstance(content, str | list):
        raise ValueError(f"the content of message {number} ({role}) is not text but {_kind(content)}")
    return message


def _of_alpaca(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    def text(name: str, *, needed: bool = False) -> str:
        value = row.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str):
            raise ValueError(f"'{name}' is not text but {_kind(value)}")
        return value

    asked, more = text("instruction", needed=True), text("input")
    messages = [{"role": "system", "content": system}] if (system := text("system")) else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise ValueError(f"'history' is not a list but {_kind(history)}")
    for number, turn in enumerate(history, 1):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(one, str) for one in turn)):
            raise ValueError(f"turn {number} of 'history' is not a question and an answer")
        messages += [{"role": "user", "content": turn[0]}, {"role": ASSISTANT, "content": turn[1]}]
    messages.append({"role": "user", "content": f"{asked}\n{more}" if more else asked})
    if output := text("output"):
        messages.append({"role": ASSISTANT, "content": output})
    return messages


def _tools(given: Any) -> list[Any] | None:
    if isinstance(given, str):
        given = _parsed(given, "'tools'") if given.strip() else None
    if not given:
        return None
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ValueError(f"'tools' is not a list of objects but {_kind(given)}")
    return given


def _parsed(text: str, what: str) -> Any:
    try:
        return _PLAIN.decode(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{what} is text that is no JSON: {e}") from e


def _cleaned(value: Any, depth: int = 0) -> tuple[Any, bool]:
    """Without null characters and halves of surrogate pairs, and whether anything was replaced.

    :raises ValueError: when it is too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"its conversation or tools are nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        pairs = {clean(str(name))[0]: _cleaned(one, depth + 1) for name, one in value.items()}
        return {name: one for name, (one, _) in pairs.items()}, any(odd for _, odd in pairs.values())
    if isinstance(value, list):
        each = [_cleaned(one, depth + 1) for one in value]
        return [one for one, _ in each], any(odd for _, odd in each)
    return value, False


def _kind(value: Any) -> str:
    return "a number" if type(value) is int else kind_of(value)


def _said(value: Any) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else _kind(value)
