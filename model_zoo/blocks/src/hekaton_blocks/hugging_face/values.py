"""Values of a ``config.json``: each is of its type and inside its bounds, or an error names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hekaton.config.base import shortened
from hekaton.errors import CheckpointError
from hekaton_blocks.sizes import MAX_LAYERS

LARGEST = 2**31 - 1
"""Of whole numbers: no size of a model is larger, and products of two fit 64 bits."""


def whole(content: Mapping[str, Any], key: str, *, least: int = 1, most: int = LARGEST) -> int:
    """:raises CheckpointError: for a value that is no whole number from ``least`` to ``most``."""
    return _whole(content.get(key), key, least=least, most=most)


def _whole(value: Any, what: str, *, least: int, most: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bound = f"above {least - 1}" if least else "of at least 0"
        if isinstance(value, int) and value > most:
            bound += f" and at most {most:,}"
        raise CheckpointError(f"{what} = {shown(value)}: a whole number {bound} was expected")
    return value


def layer_count(content: Mapping[str, Any]) -> int:
    """:raises CheckpointError: for a number of layers that no model has."""
    return whole(content, "num_hidden_layers", most=MAX_LAYERS)


def wholes(content: Mapping[str, Any], key: str, *, least: int = 0) -> list[int] | None:
    """A list of whole numbers, ``None`` for ``null``.

    :raises CheckpointError: for anything else.
    """
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise CheckpointError(f"{key} = {shown(value)}: a list of whole numbers was expected")
    return [_whole(one, f"{key}[{index}]", least=least) for index, one in enumerate(value)]


def step_of(numbers: Sequence[int], layers: int) -> int | None:
    """``n``, where these are each ``n``-th of so many layers; 0 where there are none, ``None`` where they are
    others."""
    step = min(numbers) + 1 if numbers else 0
    return step if list(numbers) == list(range(step - 1, layers, step) if step else ()) else None


def number(content: Mapping[str, Any], key: str, *, most: float = 1e30) -> float:
    """:raises CheckpointError: for a value that is no number above 0 and up to ``most``."""
    value: Any = content.get(key)
    if not _is_number(value) or not 0 < value <= most:
        bound = f" and at most {most:g}" if _is_number(value) and value > most else ""
        raise CheckpointError(f"{key} = {shown(value)}: a number above 0{bound} was expected")
    return float(value)


def optional_number(content: Mapping[str, Any], key: str, *, most: float = 1e30) -> float:
    """Like :func:`number`, and 0 for ``null`` or 0."""
    value = content.get(key)
    return 0.0 if value is None or (_is_number(value) and value == 0) else number(content, key, most=most)


def flag(content: Mapping[str, Any], key: str) -> bool:
    """:raises CheckpointError: for a value that is neither ``true`` nor ``false``."""
    value = content.get(key)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} = {shown(value)}: true or false was expected")
    return value


def sizes(content: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, int]:
    """Whole numbers above 0, by the names of fields.

    :param keys: field -> key of ``config.json``; :func:`sizes_content` writes them.
    """
    return {name: whole(content, key) for name, key in keys.items()}


def sizes_content(config: Any, keys: Mapping[str, str]) -> dict[str, int]:
    """What :func:`sizes` reads."""
    return {key: getattr(config, name) for name, key in keys.items()}


def check_known(content: Mapping[str, Any], known: Mapping[str, Sequence[Any]], *, model: str) -> None:
    """:param known: key -> the values that the model has a meaning for; a key that is missing says nothing.

    :raises CheckpointError: for another value.
    """
    for key, values in known.items():
        if key in content and not any(is_same(content[key], value) for value in values):
            said, wanted = shown(content[key]), shown(values[0])
            raise CheckpointError(f"{key} = {said}: the model {model} knows only {wanted}")


def is_same(one: Any, other: Any) -> bool:
    """Equal, and of one type: 0 is not ``false``, but 0 is 0.0."""
    return bool(one == other) and (type(one) is type(other) or (_is_number(one) and _is_number(other)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value, not longer than a line."""
    return shortened(repr(value), 80)
