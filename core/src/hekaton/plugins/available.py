"""The reviewed list of plugins that ships with hekaton: ``plugins.toml`` beside this module."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated

import tomli
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hekaton.errors import PluginError, choices_hint
from hekaton.plugins.manager import CONTRIBUTION_HOOKS, kind_name

LIST = "plugins.toml"


def _line(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("is no line of text")
    return text


Line = Annotated[str, AfterValidator(_line)]
_PACKAGE = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_VERSIONS = r"^[0-9]+(\.[0-9]+)*(, [0-9]+(\.[0-9]+)*)*$"


class Available(BaseModel):
    """A distribution that others can install.

    :param name: what its authors call it.
    :param package: what pip calls it.
    :param kinds: of its contributions, as ``hekaton plugins`` writes them.
    :param models: names for ``[model] name``.
    :param licence: an identifier of SPDX.
    :param tested: the versions of hekaton that its conformance tests passed with (``0.1, 0.2``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Line
    package: str = Field(pattern=_PACKAGE)
    summary: Line
    kinds: list[str] = Field(min_length=1)
    models: list[Line] = []
    licence: Line
    tested: str = Field(pattern=_VERSIONS)


def available() -> Sequence[Available]:
    """Every distribution of the list, in its order. Nothing is asked of a network."""
    return read((files(__package__) / LIST).read_bytes())


def read(content: bytes) -> Sequence[Available]:
    """The entries of a list.

    :raises PluginError: for what is no list of plugins, naming the entry and what is wrong with it.
    """
    try:
        tables = tomli.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomli.TOMLDecodeError) as e:
        raise PluginError(f"{LIST} is no TOML in UTF-8: {e}") from e
    entries = tables.get("plugins")
    if not isinstance(entries, list) or len(tables) > 1:
        wrong = next(
            (f"there is no key '{name}'" for name in tables if name != "plugins"), "plugins is no list"
        )
        raise PluginError(f"{LIST}: {wrong}", hint="an entry begins with [[plugins]]")
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
