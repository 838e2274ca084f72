"""Find plugins, check that they keep the rules, and look up what they contribute, with its provenance.

We scan entry points ourselves: pluggy's own loader stops at the first broken plugin and silently skips a
second distribution with the same entry name. pluggy registers the modules and checks the hook signatures.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import pluggy
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from hekaton import hookspecs
from hekaton.contributions import API_VERSION, Component, Contribution, Section
from hekaton.errors import ConfigErrors, PluginError, UnknownName, choices_hint

ENTRY_POINT_GROUP = "hekaton"
DISABLE_VARIABLE = "HEKATON_DISABLE"

T = TypeVar("T", bound=Contribution)

CONTRIBUTION_HOOKS: Mapping[str, type[Contribution]] = {
    name: get_args(function.__annotations__["return"])[0]
    for name, function in vars(hookspecs).items()
    if name.startswith("hekaton_") and function.__annotations__["return"] is not None
}
"""Hook name -> the record that it returns, read off the hook specifications."""


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


@dataclass(frozen=True)
class Contributed(Generic[T]):
    """A record and the plugin that it came from."""

    record: T
    plugin: PluginInfo


def kind_name(kind: type[Contribution]) -> str:
    """The words for a kind in messages: ``LRSchedule`` -> ``lr schedule``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", kind.__name__).lower()


class Plugins:
    """The plugins of one run. There is no global instance: tests build bare ones and register into them.

    What is wrong with a plugin never stops the construction: ``infos`` lists it and :attr:`problems` holds
    the errors, so that ``hekaton plugins`` can show them. A run calls :meth:`check` first.
    """

    def __init__(self, *, disable: Iterable[str] = ()) -> None:
        self.disable = frozenset(disable)
        self.infos: list[PluginInfo] = []
        self.problems: list[PluginError] = []
        self._manager = pluggy.PluginManager("hekaton")
        self._manager.add_hookspecs(hookspecs)
        self._records: dict[type[Contribution], dict[str, Contributed[Any]]] = {
            kind: {} for kind in CONTRIBUTION_HOOKS.values()
        }

    @classmethod
    def discover(cls, *, disable: Iterable[str] = (), load: Iterable[str] = ()) -> Plugins:
        """Plugins of every installed distribution, then the unpackaged ones in ``load``.

        :param disable: plugin names to leave out, added to those in the environment variable
            ``HEKATON_DISABLE`` (separated by commas).
        :param load: module names, or paths of ``.py`` files, for plugins under development.
        """
        blocked = {name for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name} | set(disable)
        plugins = cls(disable=blocked)
        for entry, info in _entry_points():
            plugins._add(info, entry.load)
        for target in load:
            plugins._add(PluginInfo(_module_name(target), target), lambda target=target: _import(target))
        known = [info.name for info in plugins.infos]
        for name in sorted(blocked - set(known)):
            plugins.problems.append(
                PluginError(
                    f"cannot disable '{name}': no plugin has that name", hint=choices_hint(name, known)
                )
            )
        return plugins

    def register(self, plugin: object, *, name: str) -> None:
        """Add one plugin object by hand (a module, or anything with hook methods)."""
        self._add(PluginInfo(name, getattr(plugin, "__name__", type(plugin).__name__)), lambda: plugin)

    def check(self) -> None:
        """Raise what is wrong with the plugins taken together: clashes, misspelt hooks, wrong records.

        A plugin that failed to import is not among them: it only matters to runs that need it.
        """
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise ConfigErrors(self.problems)

    def all(self, kind: type[T]) -> Mapping[str, Contributed[T]]:
        """Every contribution of a kind, by name."""
        return cast(Mapping[str, Contributed[T]], self._records[kind])

    def get(self, kind: type[T], name: str) -> T:
        """The contribution of this kind and name.

        :raises UnknownName: listing the nearest names, and the plugins that did not load and might have
            contributed it.
        """
        known = self.all(kind)
        if name in known:
            return known[name].record
        hint = choices_hint(name, known)
        absent = [info for info in self.infos if info.status != "ok"]
        if absent:
            hint += "\nnot loaded, and may contribute it:"
            hint += "".join(f"\n  {info}: {info.status}: {info.reason}" for info in absent)
        raise UnknownName(f"unknown {kind_name(kind)} '{name}'", hint=hint)

    def section_of(self, component: Component) -> str:
        """The TOML path of a component's own section, empty where it has none."""
        sections = self.all(Section)
        return component.section or (component.name if component.name in sections else "")

    def call(self, hook: str, **arguments: Any) -> None:
        """Call a lifecycle hook on every plugin."""
        getattr(self._manager.hook, hook)(**arguments)

    def _add(self, info: PluginInfo, load: Any) -> None:
        if info.name in self.disable:
            self.infos.append(replace(info, status="disabled", reason="disabled by the user"))
            return
        try:
            plugin = load()
            incompatible = _api_mismatch(plugin)
        except Exception as e:  # a stranger's module may raise anything; the run that needs it will say so
            self.infos.append(replace(info, status="broken", reason=f"{type(e).__name__}: {e}"))
            return
        if incompatible:
            self.infos.append(replace(info, status="incompatible", reason=incompatible))
            return
        taken = next((other for other in self.infos if other.name == info.name and other.status == "ok"), None)
        if taken is not None:
            self._problem(
                info,
                f"{taken} and {info} have the same name",
                hint=f"uninstall one of them, or leave both out with {DISABLE_VARIABLE}={info.name}",
            )
            return
        try:
            self._manager.register(plugin, name=info.name)
        except pluggy.PluginValidationError as e:
            self._problem(info, f"{info}: {' '.join(str(e).split())}")
            return
        try:
            self._check_hooks(info, plugin)
            self._collect(info)
        except PluginError as e:
            self._problem(info, e.message, hint=e.hint)
        except Exception as e:  # raised by the plugin's own hook
            self._manager.unregister(name=info.name)
            self.infos.append(replace(info, status="broken", reason=f"{type(e).__name__}: {e}"))
        else:
            self.infos.append(info)

    def _problem(self, info: PluginInfo, message: str, *, hint: str = "") -> None:
        cure = f"or leave it out: {DISABLE_VARIABLE}={info.name}, or [plugins] disable = [\"{info.name}\"]"
        self.problems.append(PluginError(message, hint=hint or cure))
        self.infos.append(replace(info, status="broken", reason=message))

    def _check_hooks(self, info: PluginInfo, plugin: object) -> None:
        specified = [name for name in vars(hookspecs) if name.startswith("hekaton_")]
        callers = self._manager.get_hookcallers(plugin) or []
        for caller in callers:
            if not caller.has_spec():
                raise PluginError(
                    f"{info} implements unknown hook '{caller.name}'", hint=choices_hint(caller.name, specified)
                )
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                    raise PluginError(f"{info}: '{caller.name}' must return its value, not wrap other plugins")
        marked = {caller.name for caller in callers}
        for name in dir(plugin):
            if name.startswith("hekaton_") and name not in marked and inspect.isroutine(getattr(plugin, name)):
                raise PluginError(f"{info}: '{name}' is not marked as a hook", hint="decorate it with @hookimpl")

    def _collect(self, info: PluginInfo) -> None:
        collected: list[tuple[type[Contribution], Contribution]] = []
        for hook, kind in CONTRIBUTION_HOOKS.items():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin_name == info.name:
                    collected += [(kind, r) for r in _checked(impl.function(), hook, kind, info)]
        for kind, record in collected:
            other = self._records[kind].get(record.name)
            if other is not None:
                raise PluginError(
                    f"two plugins contribute the {kind_name(kind)} '{record.name}': {other.plugin} and {info}",
                    hint=f"leave one out: {DISABLE_VARIABLE}={info.name} or {DISABLE_VARIABLE}={other.plugin.name}"
                    f", or [plugins] disable = [\"{info.name}\"] in the TOML file",
                )
            self._records[kind][record.name] = Contributed(record, info)


def _checked(returned: object, hook: str, kind: type[T], info: PluginInfo) -> list[T]:
    if not isinstance(returned, list):
        raise PluginError(f"{info}: {hook} must return a list, not {type(returned).__name__}")
    for record in returned:
        if not isinstance(record, kind):
            raise PluginError(
                f"{info}: {hook} must return {kind.__name__} records, not {type(record).__name__}: {record!r}"
            )
    return returned


def _api_mismatch(plugin: object) -> str:
    stated = getattr(plugin, "HEKATON_API", "")
    try:
        matches = SpecifierSet(stated).contains(API_VERSION)
    except InvalidSpecifier as e:
        raise PluginError(f"HEKATON_API is not a version range: {e}") from e
    return "" if matches else f"built for plugin API {stated}, this hekaton has {API_VERSION}"


def _entry_points() -> Iterable[tuple[importlib.metadata.EntryPoint, PluginInfo]]:
    seen: set[tuple[str, str]] = set()
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group != ENTRY_POINT_GROUP:
                continue
            project = distribution.metadata["Name"]
            if (project, entry.name) in seen:  # an older copy further down sys.path
                continue
            seen.add((project, entry.name))
            yield entry, PluginInfo(entry.name, entry.value, project, distribution.version)


def _module_name(target: str) -> str:
    return Path(target).stem if target.endswith(".py") else target


def _import(target: str) -> types.ModuleType:
    if not target.endswith(".py"):
        return importlib.import_module(target)
    name, path = _module_name(target), Path(target).resolve()
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() == path:
            return loaded
        raise PluginError(f"'{target}' would hide the module '{name}', which is already imported; rename it")
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
