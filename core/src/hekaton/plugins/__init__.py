"""Plugins: the hooks, where plugins come from, the rules that they keep, what the core contributes.

A plugin's author imports :mod:`hekaton.contributions`; this package is for whoever looks plugins up.
"""

from hekaton.plugins.discovery import PluginInfo
from hekaton.plugins.manager import (
    CONTRIBUTION_HOOKS,
    CORE_PLUGIN,
    DISABLE_VARIABLE,
    Contributed,
    Plugins,
    kind_name,
)

__all__ = [
    "CONTRIBUTION_HOOKS",
    "CORE_PLUGIN",
    "DISABLE_VARIABLE",
    "Contributed",
    "PluginInfo",
    "Plugins",
    "kind_name",
]
