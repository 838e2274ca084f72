"""Names that installed plugins have: a new distribution with one of them could not be used beside these."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.utils import canonicalize_name

from hekaton.contributions import Section
from hekaton.errors import ConfigError
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, kind_name
from hekaton.scaffold.kinds import Chosen

_HINT = "choose another name, or uninstall it first"


def check_free(found: Sequence[Chosen], distribution: str) -> None:
    """:raises ConfigError: for a distribution, a contribution or a section whose name is taken."""
    plugins = Plugins.discover()
    for info in plugins.infos:
        if info.distribution and canonicalize_name(info.distribution) == canonicalize_name(distribution):
            raise ConfigError(f"a distribution {distribution} is installed", hint=_HINT)
    for one in found:
        kinds = [CONTRIBUTION_HOOKS[hook] for hook in one.kind.hooks if hook in CONTRIBUTION_HOOKS]
        if one.kind.section:
            kinds.append(Section)
        for kind in kinds:
            if one.name in plugins.all(kind):
                other = plugins.all(kind)[one.name].plugin
                what = f"section [{one.name}]" if kind is Section else f"{kind_name(kind)} '{one.name}'"
                raise ConfigError(f"{other} has the {what} already", hint=_HINT)
