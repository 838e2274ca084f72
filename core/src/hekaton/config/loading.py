"""From files and flags to a checked configuration: defaults < flavor's defaults < files < flags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from hekaton.config.base import Path, Renamed, dotted, marks, walk
from hekaton.config.flags import Flag, parse_flags, twice
from hekaton.config.job import JobConfig, config_class
from hekaton.config.names import check_names, find_spec, flavor_of, idle_sections, rename_converters
from hekaton.config.plain import check_plain, plain_value
from hekaton.config.sources import Origin, Origins, Values
from hekaton.config.toml import read_files
from hekaton.config.validation import describe, notices_and_refusals
from hekaton.errors import ConfigError, ConfigErrors, HekatonError, PluginError
from hekaton.plugins import Plugins


@dataclass(frozen=True)
class Loaded:
    """A configuration that is right by itself, and what belongs to it.

    :param notices: one line each: values that have no effect, moved elsewhere, or were given twice.
    :param origins: dotted path -> where it was set (``my_run.toml, line 14``, ``--training.steps``, ``flavor
        8B of llama3``); what is absent has its default.
    """

    config: JobConfig
    plugins: Plugins
    notices: tuple[str, ...]
    origins: Mapping[str, str]


def load(
    files: Sequence[FilePath | str], flags: Sequence[str] = (), *, fields: Mapping[str, Any] | None = None
) -> Loaded:
    """Read and check a configuration.

    Files are merged from left to right, ``--job.config_file`` last; ``fields`` count more than they do, and
    flags most. Plugins are discovered as ``HEKATON_DISABLE``, ``[plugins]`` and ``--plugins.*`` say, since
    they contribute sections.

    :param flags: ``["--training.steps", "5", "--compile.enable"]``.
    :param fields: sections as in a file, ``{"training": {"steps": 5}}``, or dotted paths,
        ``{"training.steps": 5}``.
    :raises ConfigErrors: with everything that is wrong.
    """
    problems: list[HekatonError] = []
    # Before plugins are known, only the core's own flags are: enough for files and plugins.
    early = {flag.path: flag for flag in parse_flags(JobConfig, flags)[0]}
    named = early.get(("job", "config_file"))
    read, unreadable = read_files([*files, *([str(named.value)] if named else [])])
    problems += unreadable

    values = Values()
    for file in read:
        values.merge(file.tables, file.origin)
    given_fields: set[Path] = set()
    for name, value in (fields or {}).items():
        plain = plain_value(value)
        path = tuple(name.split("."))
        check_plain(plain, path, lambda path: _argument(path)())
        again = twice(path, plain, given_fields)
        problems += [ConfigError(f"the argument {field} is given more than once") for field in again]
        values.merge(_nested(path, plain), _argument)
    plugins = _discover(values, early, problems)
    config_type, wrong_sections = config_class(plugins)
    problems += wrong_sections

    given, wrong_flags, notices = parse_flags(config_type, flags)
    # A flag may be wrong only because the plugin that knows it is named in a file that could not be read.
    if not unreadable:
        problems += wrong_flags
    in_file = ("job", "config_file")
    if in_file in values.values:
        notices.append(
            f"job.config_file has no effect in a file ({values.origin(in_file)}); give it as a flag"
        )
    for flag in given:
        values.merge(_nested(flag.path, flag.value), _always(flag.text))
    notices += _move_renamed(config_type, values)
    notices += rename_converters(values, plugins)
    if unreadable:
        raise ConfigErrors(problems)

    spec, wrong_spec = find_spec(values, plugins)
    problems += wrong_spec
    if spec is not None:
        values = _with_flavor_defaults(spec, values)

    config = None
    invalid: Mapping[Path, HekatonError] = {}
    try:
        config = config_type.model_validate_json(json.dumps(values.tables(), default=str), strict=True)
    except ValidationError as e:
        invalid = describe(e, config_type, values, plugins)
        problems += invalid.values()
    more_notices, refusals = notices_and_refusals(config_type, values, wrong=invalid)
    notices += [*more_notices, *idle_sections(config_type, values, plugins, spec)]
    problems += refusals
    problems += check_names(config_type, values, plugins, spec)
    if problems:
        raise ConfigErrors(problems)
    assert config is not None
    return Loaded(config, plugins, tuple(notices), Origins(values))


def _discover(values: Values, flags: Mapping[Path, Flag], problems: list[HekatonError]) -> Plugins:
    """The plugins that files and flags ask for; what is wrong with them goes to ``problems``."""
    lists: dict[str, list[str]] = {}
    for name in ("load", "disable"):
        path = ("plugins", name)
        value = flags[path].value if path in flags else values.values.get(path, [])
        lists[name] = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    plugins = Plugins.discover(disable=lists["disable"], load=lists["load"])
    for problem in plugins.problems:
        cause: Path = tuple(problem.origin.split("."))
        if cause in flags:
            problem.origin = flags[cause].text
        elif cause in values.values:
            problem.origin = values.origin(cause)
    try:
        plugins.check()
    except (PluginError, ConfigErrors) as e:
        problems += e.problems if isinstance(e, ConfigErrors) else [e]
    return plugins


def _move_renamed(config: type[JobConfig], values: Values) -> list[str]:
    """Give values of renamed fields to those that take their place."""
    notices = []
    for path, field, _ in walk(config):
        for mark in marks(field, Renamed):
            if path not in values.values:
                continue
            where = values.origin(path)
            to = tuple(mark.to.split("."))
            if to in values.values:
                notices.append(
                    f"{dotted(path)} is now {mark.to} ({where}), which is set as well and takes precedence"
                )
                values.remove(path)
            else:
                notices.append(f"{dotted(path)} is now {mark.to} ({where}); its value is used there")
                values.move(path, to)
    return notices


def _with_flavor_defaults(spec: Any, values: Values) -> Values:
    """What the user set, laid over the defaults of the flavor and the model's own objective."""
    flavor = flavor_of(values)
    merged = Values()
    merged.merge({"training": {"objective": spec.objective}}, _always(f"model {spec.name}"))
    merged.merge(spec.defaults.get(flavor, {}), _always(f"flavor {flavor} of {spec.name}"))
    for path, value in values.values.items():
        origin = values.origins[path]
        merged.merge(_nested(path, value), lambda _, origin=origin: origin)  # type: ignore[misc]
    return merged


def _always(text: str) -> Any:
    def origin(path: Path) -> Origin:
        return lambda: text

    return origin


def _argument(path: Path) -> Origin:
    return lambda: f"the argument {dotted(path)}"


def _nested(path: Path, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value  # type: ignore[no-any-return]
