"""Register plugins, check that they keep the rules, and look up what they contribute, with its provenance.

pluggy keeps the modules and checks hook signatures. It lets misspelt hooks and wrong return values pass and
gives results without names, so those are ours to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast, get_args

import pluggy

from hekaton.contributions import Component, Contribution, Ref, Section
from hekaton.errors import ConfigErrors, HekatonError, PluginError, UnknownName, choices_hint
from hekaton.paths import expanded
from hekaton.plugins import hookspecs
from hekaton.plugins.deprecations import warn_of_deprecated
from hekaton.plugins.discovery import PluginInfo, api_mismatch, import_unpackaged, installed, module_name
from hekaton.plugins.packages import install_hint
from hekaton.plugins.requirements import malformed, unmet
from hekaton.plugins.trace import is_traced, traced

DISABLE_VARIABLE = "HEKATON_DISABLE"
CORE_PLUGIN = "builtin"
_PATH = re.compile(r"[A-Za-z][\w-]*(\.[A-Za-z][\w-]*)*", re.ASCII)

T = TypeVar("T", bound=Contribution)

CONTRIBUTION_HOOKS: Mapping[str, type[Contribution]] = {
    name: get_args(function.__annotations__["return"])[0]
    for name, function in vars(hookspecs).items()
    if name.startswith("hekaton_") and function.__annotations__["return"] is not None
}
"""Hook name -> the record that it returns, read off the hook specifications."""


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
        blocked = dict.fromkeys(disable, "plugins.disable")
        for name in os.environ.get(DISABLE_VARIABLE, "").split(","):
            if name.strip():
                blocked[name.strip()] = f"environment variable {DISABLE_VARIABLE}"
        plugins = cls(disable=blocked)
        for entry, info in installed():
            plugins._add(info, entry.load)
        for target in dict.fromkeys(load):
            plugins._load(target)
        known = [info.name for info in plugins.infos]
        for name, origin in blocked.items():
            if name not in known:
                plugins.problems.append(
                    PluginError(
                        f"cannot disable '{name}': no plugin has that name",
                        origin=origin,
                        hint=choices_hint(name, known),
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
        :raises PluginError: when it needs what is not installed.
        """
        known = self.all(kind)
        if name in known:
            record = known[name].record
            if reason := unmet(record.needs):
                installs = " ".join(f"'{need}'" for need in record.needs)
                raise PluginError(f"{kind_name(kind)} '{name}' {reason}", hint=f"pip install {installs}")
            return record
        hint = choices_hint(name, known)
        install = install_hint(kind_name(kind), name)
        if install:
            hint = f"{install}\n{hint}"
        absent = [info for info in self.infos if info.status != "ok"]
        if absent:
            hint += "\nnot loaded, and may contribute it:"
            hint += "".join(f"\n  {info}: {info.status}: {info.reason}" for info in absent)
        raise UnknownName(f"unknown {kind_name(kind)} '{name}'", hint=hint)

    def section_of(self, component: Component) -> str:
        """The TOML path of a component's own section, empty where it has none.

        :raises UnknownName: when the component names a section that no plugin contributes.
        """
        if component.section:
            return self.get(Section, component.section).name
        return component.name if component.name in self.all(Section) else ""

    def contributions(self, plugin: PluginInfo) -> list[Contribution]:
        """Everything that one plugin contributes, by kind."""
        every = [record for records in self._records.values() for record in records.values()]
        return [contributed.record for contributed in every if contributed.plugin is plugin]

    def lifecycle_hooks(self, plugin: PluginInfo) -> list[str]:
        """The lifecycle hooks that one plugin listens to."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(plugin.name)) or []
        return sorted(caller.name for caller in callers if caller.name not in CONTRIBUTION_HOOKS)

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a lifecycle hook on every plugin; :returns: what is not ``None``, which should be nothing."""
        caller = getattr(self._manager.hook, hook)
        if not is_traced():
            return list(caller(**arguments))
        returned = []
        for impl in reversed(caller.get_hookimpls()):  # in pluggy's order
            with traced(hook, impl.plugin_name) as told:
                found = impl.function(*(arguments[name] for name in impl.argnames))
                told(found)
            returned += [] if found is None else [found]
        return returned

    def _add(self, info: PluginInfo, load: Callable[[], object]) -> None:
        if info.name in self.disable:
            self.infos.append(replace(info, status="disabled", reason="disabled by the user"))
            return
        try:
            with _stdout_kept():
                plugin = load()
            incompatible = api_mismatch(plugin)
        except KeyboardInterrupt:
            print(f"interrupted while {info} was imported", file=sys.stderr)
            raise
        except BaseException as e:  # another author's module may raise anything
            self.infos.append(replace(info, status="broken", reason=_reason(e)))
            return
        if incompatible:
            self.infos.append(replace(info, status="incompatible", reason=incompatible))
            return
        if not self._takes_part(info, plugin):
            return
        try:
            self._manager.register(plugin, name=info.name)
            self._check_hooks(info, plugin)
            collected = self._collect(info)
            problems = self._clashes(info, collected)
        except PluginError as e:
            problems = [e]
        except pluggy.PluginValidationError as e:
            problems = [PluginError(f"{info}: {' '.join(str(e).split())}")]
        except _HookFailed as e:
            self._manager.unregister(name=info.name)
            self.infos.append(replace(info, status="broken", reason=str(e)))
            return
        if problems:
            self._manager.unregister(name=info.name)
            self._refuse(info, problems)
            return
        for kind, record in collected:
            self._records[kind][record.name] = Contributed(record, info)
        self.infos.append(info)
        hooks = [caller.name for caller in self._manager.get_hookcallers(plugin) or []]
        warn_of_deprecated(info, hooks, [record for _, record in collected])

    def _load(self, target: str) -> None:
        """Add an unpackaged plugin. The user named it, so a failure to load it is never skipped."""
        before = len(self.problems)
        try:
            target = expanded(target)
        except ValueError as e:
            self.problems.append(PluginError(f"cannot load plugin '{target}': {e}", origin="plugins.load"))
            return
        self._add(PluginInfo(module_name(target), target), lambda: import_unpackaged(target))
        info = next((info for info in self.infos if info.module == target), None)
        if info is not None and info.status in ("broken", "incompatible") and len(self.problems) == before:
            self.problems.append(
                PluginError(
                    f"cannot load plugin '{target}': {info.reason}",
                    origin="plugins.load",
                    hint="give an importable module, or the path of a .py file"
                    if info.reason == f"ModuleNotFoundError: No module named '{target}'"
                    else "",
                )
            )

    def _takes_part(self, info: PluginInfo, plugin: object) -> bool:
        """Whether a loaded plugin is new; two different plugins with one name are a problem."""
        for other in self.infos:
            if other.status != "ok":
                continue
            same = self._manager.get_plugin(other.name) is plugin
            if same and not info.distribution:  # [plugins] load names an installed one
                return False
            if same or other.name == info.name:
                what = "are the same module" if same else "have the same name"
                cure = f"uninstall one of them, or {_cure(info)}"
                self._refuse(info, [PluginError(f"{other} and {info} {what}", hint=cure)])
                return False
        return True

    def _refuse(self, info: PluginInfo, problems: Sequence[PluginError]) -> None:
        """List a plugin as broken because it breaks a rule, which ends every run."""
        self.infos.append(replace(info, status="broken", reason="\n".join(p.message for p in problems)))
        for problem in problems:
            if DISABLE_VARIABLE not in problem.hint:
                problem.hint += f"\nor {_cure(info)}" if problem.hint else _cure(info)
        self.problems += problems

    def _check_hooks(self, info: PluginInfo, plugin: object) -> None:
        specified = [name for name in vars(hookspecs) if name.startswith("hekaton_")]
        callers = self._manager.get_hookcallers(plugin) or []
        marked = set()
        for caller in callers:
            name = caller.name
            if not caller.has_spec():
                raise PluginError(
                    f"{info} implements unknown hook '{name}'", hint=choices_hint(name, specified)
                )
            for impl in caller.get_hookimpls():
                marked.add(impl.function)
                if impl.plugin is plugin and (impl.wrapper or impl.hookwrapper):
                    raise PluginError(f"{info}: '{name}' must return its value, not wrap other plugins")
        for name in dir(plugin):
            value = getattr(plugin, name) if name.startswith("hekaton_") else None
            if inspect.isroutine(value) and value not in marked:
                cure = "decorate it with @hookimpl"
                raise PluginError(f"{info}: '{name}' is not marked as a hook", hint=cure)
        if not callers:
            raise PluginError(f"{info} implements no hook", hint="mark its hooks with @hookimpl")

    def _collect(self, info: PluginInfo) -> list[tuple[type[Contribution], Contribution]]:
        collected: list[tuple[type[Contribution], Contribution]] = []
        for hook, kind in CONTRIBUTION_HOOKS.items():
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.plugin_name != info.name:
                    continue
                try:
                    with traced(hook, info.name) as told, _stdout_kept():
                        returned = impl.function()
                        told(returned)
                except KeyboardInterrupt:
                    raise
                except BaseException as e:
                    raise _HookFailed(f"{hook} raised {_reason(e)}") from e
                collected += [(kind, record) for record in _checked(returned, hook, kind, info)]
        return collected

    def _clashes(
        self, info: PluginInfo, collected: Sequence[tuple[type[Contribution], Contribution]]
    ) -> list[PluginError]:
        clashes = []
        for kind, record in collected:
            other = self._records[kind].get(record.name)
            if other is not None:
                what = f"the {kind_name(kind)} '{record.name}'"
                clashes.append(
                    PluginError(
                        f"two plugins contribute {what}: {other.plugin} and {info}",
                        hint=f"leave one out: {DISABLE_VARIABLE}={info.name} or "
                        f'{DISABLE_VARIABLE}={other.plugin.name}, or [plugins] disable = ["{info.name}"] '
                        "in the TOML file",
                    )
                )
        counts = Counter((kind, record.name) for kind, record in collected)
        for (kind, name), count in counts.items():
            if count > 1:
                what = f"the {kind_name(kind)} '{name}'"
                clashes.append(PluginError(f"{info} contributes {what} {count} times"))
        return clashes


def _stdout_kept() -> contextlib.AbstractContextManager[Any]:
    """What a plugin prints while it is looked at is no part of what ``hekaton plugins --json`` says."""
    return contextlib.redirect_stdout(sys.stderr)


class _HookFailed(Exception):
    """A contribution hook raised: the plugin is broken, like one that fails to import."""


def _cure(info: PluginInfo) -> str:
    return f'leave it out: {DISABLE_VARIABLE}={info.name}, or [plugins] disable = ["{info.name}"]'


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, HekatonError) else f"{type(error).__name__}: {error}"


def _checked(returned: object, hook: str, kind: type[T], info: PluginInfo) -> list[T]:
    if not isinstance(returned, list):
        raise PluginError(f"{info}: {hook} must return a list, not {type(returned).__name__}")
    for record in returned:
        if not isinstance(record, kind):
            raise PluginError(
                f"{info}: {hook} must return {kind.__name__} records, not {type(record).__name__}: {record!r}"
            )
        if not isinstance(record.name, str) or not record.name:
            raise PluginError(f"{info}: {hook} returned a record whose name is not a word: {record!r}")
        if kind is Section and not _PATH.fullmatch(record.name):
            raise PluginError(
                f"{info}: '{record.name}' cannot be the name of a section",
                hint="names of a section are letters, digits, _ and -, with dots between them",
            )
        if wrong := malformed(record.needs):
            raise PluginError(
                f"{info}: needs of the {kind_name(kind)} '{record.name}' {wrong}",
                hint='write needs=("torchao>=0.18",)',
            )
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if field.type == "Ref" and not isinstance(value, Ref):
                raise PluginError(
                    f"{info}: {field.name} of the {kind_name(kind)} '{record.name}' must be a Ref, "
                    f"not {type(value).__name__}",
                    hint=f"write {field.name}=Ref('module:attribute')",
                )
    return returned
