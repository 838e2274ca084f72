"""Where plugins come from: the entry points of installed distributions, and modules named by the user.

We scan entry points ourselves: pluggy's own loader stops at the first broken plugin and silently skips a
second distribution with the same entry name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from hekaton.contributions import API_VERSION
from hekaton.errors import PluginError

ENTRY_POINT_GROUP = "hekaton"


@dataclass(frozen=True)
class PluginInfo:
    """Where a plugin comes from, and whether it takes part in the run."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    status: Literal["ok", "broken", "incompatible", "disabled"] = "ok"
    reason: str = ""

    def __str__(self) -> str:
        origin = f"distribution {self.distribution} {self.version}" if self.distribution else "unpackaged"
        return f"plugin '{self.name}' ({origin})"


def installed() -> list[tuple[importlib.metadata.EntryPoint, PluginInfo]]:
    """The plugins of every installed distribution: the core's, then by the distribution's name."""
    found: dict[tuple[str, str], tuple[importlib.metadata.EntryPoint, PluginInfo]] = {}
    for folder in sys.path:
        for entry, info in _in_folder(folder, _changed(folder)):
            # An older copy further down the path is left out.
            found.setdefault((canonicalize_name(info.distribution), info.name), (entry, info))
    return sorted(found.values(), key=_core_first)


def _changed(folder: str) -> int:
    """When a folder got or lost a member, in nanoseconds; 0 for what is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except (OSError, ValueError):
        return 0


def api_mismatch(plugin: object) -> str:
    """Why a plugin does not fit this version of the plugin API, empty where it does or does not say.

    :raises PluginError: when ``HEKATON_API`` is not a version range.
    """
    stated = getattr(plugin, "HEKATON_API", "")
    try:
        matches = SpecifierSet(str(stated)).contains(API_VERSION)
    except InvalidSpecifier as e:
        raise PluginError(f"HEKATON_API = {stated!r} is not a version range such as '>=1,<2'") from e
    return "" if matches else f"built for plugin API {stated}, this hekaton has {API_VERSION}"


@lru_cache(maxsize=64)
def _in_folder(folder: str, changed: int) -> tuple[tuple[importlib.metadata.EntryPoint, PluginInfo], ...]:
    """The plugins of the distributions in a folder of the path, read again when it has changed, as
    importlib.metadata does itself."""
    found = []
    for distribution in importlib.metadata.distributions(path=[folder]):
        for entry in distribution.entry_points:
            if entry.group == ENTRY_POINT_GROUP:
                metadata = distribution.metadata  # parsed each time
                info = PluginInfo(entry.name, entry.value, metadata["Name"], metadata["Version"])
                found.append((entry, info))
    return tuple(found)


def module_name(target: str) -> str:
    """The name under which a module, or the path of a ``.py`` file, is imported.

    A package is given by the path of its ``__init__.py``.
    """
    if not target.endswith(".py"):
        return target
    path = Path(os.path.realpath(target))
    return path.parent.name if path.stem == "__init__" else path.stem


def import_unpackaged(target: str) -> types.ModuleType:
    """Import a module by its name, or by the path of its ``.py`` file.

    :raises PluginError: for a path that is not there, or that would hide another module.
    """
    if not target.endswith(".py"):
        return importlib.import_module(target)
    name, path = module_name(target), Path(os.path.realpath(target))
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(os.path.realpath(getattr(loaded, "__file__", None) or "")) == path:
            return loaded
        raise PluginError(f"'{target}' would hide the module '{name}', which is already imported; rename it")
    if not path.is_file():
        raise PluginError(f"there is no file '{target}'")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _core_first(found: tuple[importlib.metadata.EntryPoint, PluginInfo]) -> tuple[bool, str, str]:
    """A fixed order, however distributions are found; in a clash with the core the other one yields."""
    _, info = found
    return (canonicalize_name(info.distribution) != "hekaton", info.distribution, info.name)
