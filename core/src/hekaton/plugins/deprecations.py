"""What of the plugin API goes away: the plugins that still use it are named, once per run."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from hekaton.contributions import Contribution
from hekaton.plugins.discovery import PluginInfo


@dataclass(frozen=True)
class Deprecation:
    """A name that works for now.

    :param since: the version of the plugin API that deprecates it, and ``removed`` the first without it.
    :param instead: what to use.
    """

    since: str
    removed: str
    instead: str


HOOKS: dict[str, Deprecation] = {}
"""Name of a hook -> its deprecation."""
FIELDS: dict[tuple[str, str], Deprecation] = {}
"""Name of a record's class and of its field -> its deprecation. A use is a value other than the default."""


def warn_of_deprecated(info: PluginInfo, hooks: Iterable[str], records: Iterable[Contribution]) -> None:
    """Warn of the hooks that a plugin implements, and of the fields that its records set."""
    for hook in hooks:
        if hook in HOOKS:
            _warn(str(info), f"the hook '{hook}'", HOOKS[hook])
    for record in records if FIELDS else ():
        for field in dataclasses.fields(record):
            deprecation = FIELDS.get((type(record).__name__, field.name))
            if deprecation is not None and getattr(record, field.name) != field.default:
                what = f"'{field.name}' of {type(record).__name__} '{record.name}'"
                _warn(str(info), what, deprecation)


@functools.cache
def _warn(plugin: str, what: str, deprecation: Deprecation) -> None:
    warnings.warn(
        f"{plugin} uses {what}: deprecated in plugin API {deprecation.since}, removed in "
        f"{deprecation.removed}; use {deprecation.instead}",
        DeprecationWarning,
        stacklevel=2,
    )
