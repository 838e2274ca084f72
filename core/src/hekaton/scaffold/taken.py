"""Names that installed plugins have: a new distribution with one of them could not be used beside these."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence

from hekaton.contributions import Section
from hekaton.errors import ConfigError
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, kind_name
from hekaton.scaffold.kinds import Chosen
from hekaton.scaffold.write import names_of

_HINT = "choose another name, or uninstall it first"


def check_free(found: Sequence[Chosen]) -> None:
    """:raises ConfigError: for a distribution, a package, a plugin, a contribution or a section whose name is
    taken."""
    distribution, package = names_of(found)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(distribution)
        raise ConfigError(f"a distribution {distribution} is installed, version {version}", hint=_HINT)
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        raise ConfigError(f"there is a package {package} already, in {spec.origin}", hint=_HINT)
    plugins = Plugins.discover()
    for info in plugins.infos:
        if info.name == found[0].name:
            raise ConfigError(f"there is a plugin '{info.name}' already, {info}", hint=_HINT)
    for one in found:
        kinds = [CONTRIBUTION_HOOKS[hook] for hook in one.kind.hooks if hook in CONTRIBUTION_HOOKS]
        if one.kind.section:
            kinds.append(Section)
        for kind in kinds:
            if one.name in plugins.all(kind):
                other = plugins.all(kind)[one.name].plugin
                what = f"section [{one.name}]" if kind is Section else f"{kind_name(kind)} '{one.name}'"
                raise ConfigError(f"{other} has the {what} already", hint=_HINT)
