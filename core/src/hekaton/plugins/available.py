"""The reviewed list of plugins that ships with hekaton: ``plugins.toml`` beside this module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import tomli
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hekaton.errors import PluginError, choices_hint
from hekaton.plugins.manager import CONTRIBUTION_HOOKS, kind_name

LIST = "plugins.toml"


class Available(BaseModel):
    """A distribution that others can install.

    :param name: what its authors call it.
    :param package: what pip calls it.
    :param kinds: of its contributions, as ``hekaton plugins`` writes them.
    :param models: names for ``[model] name``.
    :param licence: an identifier of SPDX.
    :param tested: the versions of hekaton that its conformance tests passed with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1)
    package: str = Field(min_length=1)
    summary: str = Field(min_length=1)
    kinds: list[str] = Field(min_length=1)
    models: list[str] = []
    licence: str = Field(min_length=1)
    tested: str = Field(min_length=1)


def available() -> Sequence[Available]:
    """Every distribution of the list, in its order. Nothing is asked of a network."""
    return read((files(__package__) / LIST).read_bytes())


def read(content: bytes) -> Sequence[Available]:
    """The entries of a list.

    :raises PluginError: for what is no list of plugins, naming the entry and what is wrong with it.
    """
    try:
        entries = tomli.loads(content.decode("utf-8")).get("plugins", [])
    except (UnicodeDecodeError, tomli.TOMLDecodeError) as e:
        raise PluginError(f"{LIST} is no TOML in UTF-8: {e}") from e
    if not isinstance(entries, list):
        raise PluginError(f"{LIST}: plugins is no list", hint="an entry begins with [[plugins]]")
    found = [_entry(number, entry) for number, entry in enumerate(entries, start=1)]
    packages = [canonicalize_name(one.package) for one in found]
    for number, package in enumerate(packages):
        if package in packages[:number]:
            raise PluginError(f"{LIST} lists {package} twice", hint="keep one of the entries")
    return found


def _entry(number: int, entry: object) -> Available:
    named = entry.get("package") if isinstance(entry, dict) else None
    where = f"{LIST}, entry {number}{f' ({named})' if named else ''}"
    try:
        found = Available.model_validate(entry)
    except ValidationError as e:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in e.errors())
        raise PluginError(
            f"{where}: {wrong}", hint=f"its keys are {', '.join(Available.model_fields)}"
        ) from e
    known = sorted({kind_name(kind) for kind in CONTRIBUTION_HOOKS.values()})
    for kind in found.kinds:
        if kind not in known:
            raise PluginError(f"{where}: there is no kind '{kind}'", hint=choices_hint(kind, known))
    return found
