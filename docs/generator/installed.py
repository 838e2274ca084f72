"""The plugins of this repository, whatever else is installed beside them."""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

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
