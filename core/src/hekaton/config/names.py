"""Names that a run selects by: models, flavors, datasets, optimizers, ... and fields of a flavor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from hekaton.config.base import NameOf, Path, SectionModel, default_of, dotted, marks, walk
from hekaton.config.job import JobConfig
from hekaton.config.sections.run import LOGGER_SWITCHES
from hekaton.config.sources import Values
from hekaton.config.validation import UNSET, described, is_off, set_value
from hekaton.contributions import Component, Contribution, Converter, Logger, Model, Objective, Section
from hekaton.errors import ConfigError, HekatonError, PluginError, UnknownName
from hekaton.overrides import overridden
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, kind_name
from hekaton.plugins.packages import CONVERTERS, converter_hint

if TYPE_CHECKING:
    from hekaton.spec import TrainSpec

SWITCHES: dict[str, Path] = {name: ("metrics", field) for name, field in LOGGER_SWITCHES.items()}
MODEL, FLAVOR, OVERRIDES = ("model", "name"), ("model", "flavor"), ("model", "overrides")


CONVERTERS_PATH = ("model", "converters")


def flavor_of(values: Values) -> Any:
    return values.values.get(FLAVOR, JobConfig().model.flavor)


def find_spec(values: Values, plugins: Plugins) -> tuple[TrainSpec | None, list[HekatonError]]:
    """The specification of the named model; this imports torch. An unknown name is :func:`check_names`'s."""
    name = values.values.get(MODEL, JobConfig().model.name)
    known = plugins.all(Model)
    if not isinstance(name, str) or name not in known:
        return None, []
    from hekaton.spec import load_spec

    try:
        return load_spec(known[name].record), []
    except HekatonError as e:
        e.origin = e.origin or f"model '{name}' of {known[name].plugin}"
        return None, [e]


def check_names(
    config: type[JobConfig], values: Values, plugins: Plugins, spec: TrainSpec | None
) -> list[HekatonError]:
    """Every name that nobody contributes, and every override of a field that the flavor does not have."""
    problems: list[HekatonError] = []
    for path, field, inside in walk(config):
        for mark in marks(field, NameOf):
            if is_off(path, inside, values):
                continue
            value = values.values.get(path, default_of(field))
            for name in value if isinstance(value, list) else [value]:
                problems += _unknown(mark.kind, name, path, values, plugins)
    for name, path in SWITCHES.items():
        if values.values.get(path) is True:
            problems += _unknown(Logger, name, path, values, plugins)
    if spec is not None:
        problems += _check_flavor(spec, values)
    return problems


def _unknown(
    kind: type[Contribution], name: object, path: Path, values: Values, plugins: Plugins
) -> Iterator[HekatonError]:
    if not isinstance(name, str):
        return  # the section says so
    try:
        plugins.get(kind, name)
    except UnknownName as e:
        origin = values.origin(path) or f"default of {dotted(path)}"
        message = f"unknown {kind_name(kind)} '{name}' ({dotted(path)})"
        earlier = converter_hint(name) if kind is Converter else ""
        yield UnknownName(message, origin=origin, hint=f"{earlier}\n{e.hint}" if earlier else e.hint)
    except PluginError as e:
        origin = values.origin(path) or f"default of {dotted(path)}"
        yield PluginError(f"{e.message} ({dotted(path)})", origin=origin, hint=e.hint)


def rename_converters(values: Values, plugins: Plugins) -> list[str]:
    """Give converters the names that they have now, where a plugin contributes those; returns notices."""
    names = values.values.get(CONVERTERS_PATH)
    if not isinstance(names, list):
        return []
    known = plugins.all(Converter)
    notices = []
    for index, name in enumerate(names):
        now = CONVERTERS.get(name, "") if isinstance(name, str) and name not in known else ""
        if now in known:
            names[index] = now
            place = values.origin(CONVERTERS_PATH)
            notices.append(f"{dotted(CONVERTERS_PATH)}: '{name}' is called '{now}' now ({place})")
    return notices


def idle_sections(
    config: type[JobConfig], values: Values, plugins: Plugins, spec: TrainSpec | None
) -> Iterator[str]:
    """A notice per section of a plugin that is set while the run selects no component that reads it.

    What no field names (encoders, parallel styles) comes with a component that one does.
    """
    selected: dict[type[Contribution], set[str]] = {}
    for path, field, inside in walk(config):
        if not is_off(path, inside, values):
            for kind, name in _named_in_entries(field, values.values.get(path)):
                selected.setdefault(kind, set()).add(name)
        for mark in marks(field, NameOf):
            value = values.values.get(path, default_of(field))
            names = {
                name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)
            }
            selected.setdefault(mark.kind, set()).update(set() if is_off(path, inside, values) else names)
    if spec is not None and not selected.get(Objective):
        selected[Objective] = {spec.objective}
    selected[Logger].update(name for name, path in SWITCHES.items() if values.values.get(path) is True)
    for section in plugins.all(Section):
        path = tuple(section.split("."))
        if not values.below(path):
            continue
        below = [(at, field) for at, field, _ in walk(config) if at[: len(path)] == path]
        if all(set_value(at, field, values) is UNSET for at, field in below):
            continue
        readers = [
            record
            for record in _components(plugins)
            if plugins.section_of(record) == section and type(record) in selected
        ]
        idle = [record for record in readers if record.name not in selected[type(record)]]
        if readers and len(idle) == len(readers):
            who = " or ".join(f"the {kind_name(type(record))} '{record.name}'" for record in idle)
            yield f"[{section}] ({values.origin(path)}): no effect: the run does not use {who}"


def _named_in_entries(field: FieldInfo, value: object) -> Iterator[tuple[type[Contribution], str]]:
    """What the entries of a list of sections name, as ``[[mixture.sources]]`` do datasets."""
    (entry,) = get_args(field.annotation) if get_origin(field.annotation) is list else (None,)
    if not (isinstance(entry, type) and issubclass(entry, SectionModel) and isinstance(value, list)):
        return
    for name, inner in entry.model_fields.items():
        for mark in marks(inner, NameOf):
            found = [one.get(name) for one in value if isinstance(one, dict)]
            yield from ((mark.kind, one) for one in found if isinstance(one, str))


def _components(plugins: Plugins) -> Iterator[Component]:
    for kind in CONTRIBUTION_HOOKS.values():
        if issubclass(kind, Component):
            for contributed in plugins.all(kind).values():
                if not contributed.record.section or contributed.record.section in plugins.all(Section):
                    yield contributed.record


def _check_flavor(spec: TrainSpec, values: Values) -> Iterator[HekatonError]:
    flavor = flavor_of(values)
    if not isinstance(flavor, str):
        return
    origin = values.origin(FLAVOR) or "default of model.flavor"
    try:
        settings = spec.flavor(flavor, field="model.flavor", origin=origin)
    except ConfigError as e:
        yield e
        return
    model = values.tables().get("model")
    overrides = model.get("overrides") if isinstance(model, dict) else None
    if not dataclasses.is_dataclass(settings) or not isinstance(overrides, dict):
        return
    for wrong in overridden(settings, overrides)[1]:
        path = (*OVERRIDES, *wrong.path)
        if not wrong.path:
            continue  # the model's own section may change what it is about: a rule says so
        if wrong.unknown:
            owner = f"{spec.name} {flavor}" if len(wrong.path) == 1 else dotted(path[:-1])
            message = f"{dotted(path)}: {owner} has no field '{path[-1]}'"
        elif wrong.detail is not None:
            message = f"{dotted(path)} {described(wrong.detail)}"
        else:
            message = f"{dotted(path)}: {wrong.message}"
        yield ConfigError(message, origin=values.origin(path), hint=wrong.hint)
