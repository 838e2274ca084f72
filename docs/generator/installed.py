"""The plugins of this repository, whatever else is installed beside them."""

from __future__ import annotations

import os
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

from generator.source import definitions
from hekaton.contributions import Contribution, Ref
from hekaton.plugins import DISABLE_VARIABLE, Plugins
from hekaton.plugins.discovery import installed

ROOT = Path(__file__).resolve().parents[2]


def first_party() -> frozenset[str]:
    """The distributions of this repository, from the editable lines of ``requirements.txt``."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    folders = [line.removeprefix("-e ") for line in lines if line.startswith("-e ")]
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8")) for folder in folders]
    return frozenset(canonicalize_name(project["project"]["name"]) for project in projects)


@cache
def third_party_plugins() -> tuple[str, ...]:
    """The names of installed plugins that are not of this repository."""
    ours = first_party()
    return tuple(info.name for _, info in installed() if canonicalize_name(info.distribution) not in ours)


@cache
def plugins() -> Plugins:
    """The repository's own plugins.

    :raises HekatonError: when one of them breaks a rule.
    """
    os.environ[DISABLE_VARIABLE] = ",".join(third_party_plugins())
    found = Plugins.discover()
    found.check()
    missing = [str(info) for info in found.infos if info.status not in ("ok", "disabled")]
    if missing:
        raise SystemExit(f"cannot describe what does not load: {', '.join(missing)}")
    return found


def source_link(text: str, target: str) -> str:
    """A link to the source of a ``module:attribute``, at its definition, from a page in a folder of ``docs``.
    On the site it leads to the page that ``docs/sources.py`` makes of the file."""
    module, _, attribute = target.partition(":")
    spec = find_spec(module)
    assert spec is not None, target
    assert spec.origin is not None, target
    path = Path(spec.origin).resolve().relative_to(ROOT).as_posix()
    name = attribute.partition(".")[0]
    anchor = f"#{name}" if name in _names(spec.origin) else ""
    return f"[{text}](../../{path}{anchor})"


@cache
def _names(path: str) -> frozenset[str]:
    text = Path(path).read_text(encoding="utf-8")
    return frozenset(name for name, _, _ in definitions(text) if name)


def refs(record: Contribution) -> list[Ref]:
    """What a record names."""
    return [value for value in vars(record).values() if isinstance(value, Ref)]
