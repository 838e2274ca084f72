"""The reviewed list of plugins that ships with hekaton: ``plugins.toml`` beside this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import tomli


@dataclass(frozen=True, kw_only=True)
class Available:
    """A distribution that others can install.

    :param name: what its authors call it.
    :param package: what pip calls it.
    :param kinds: of its contributions, as ``hekaton plugins`` writes them.
    :param models: names for ``[model] name``.
    :param licence: an identifier of SPDX.
    :param tested: the versions of hekaton that its conformance tests passed with.
    """

    name: str
    package: str
    summary: str
    kinds: Sequence[str]
    models: Sequence[str] = ()
    licence: str
    tested: str


def available() -> list[Available]:
    """Every distribution of the list, in its order. Nothing is asked of a network."""
    text = (files(__package__) / "plugins.toml").read_text(encoding="utf-8")
    return [Available(**entry) for entry in tomli.loads(text)["plugins"]]
