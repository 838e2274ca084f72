"""JSON from users and strangers, in which nothing is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class KeyTwice(ValueError):
    """An object has a key twice: all but the last value would be ignored."""


def parsed(text: str | bytes) -> Any:
    """The value that a text stands for.

    :raises ValueError: for what is no JSON.
    :raises KeyTwice: for an object that has a key twice.
    :raises RecursionError: for one that is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise KeyTwice(f"it has the key '{key[:40]}' twice")
    return found
