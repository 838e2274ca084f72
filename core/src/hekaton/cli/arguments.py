"""Arguments that several verbs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hekaton.errors import ConfigError
from hekaton.paths import expanded

if TYPE_CHECKING:
    from hekaton.config import Loaded


class VerbParser(argparse.ArgumentParser):
    """The options of a verb. What is wrong with them is a ``ConfigError``, and so is an option that takes one
    value and is given two: the first would be ignored.

    Options are written out, as those of runs are.
    """

    def __init__(self, verb: str, *, hint: str = "") -> None:
        """:param hint: of errors; by default how to get help."""
        super().__init__(prog=f"hekaton {verb}", add_help=False, allow_abbrev=False)
        self._hint = hint or f"hekaton {verb} --help"
        self.register("action", None, _StoredOnce)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}", hint=self._hint)


class _StoredOnce(argparse.Action):
    """Keeps a value, and rejects a second one."""

    taken = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if self.taken:
            raise ConfigError(f"{parser.prog}: {option} is given more than once", hint="give it once")
        self.taken = True
        setattr(namespace, self.dest, values)


MOST_SEED = 2**64 - 1


def check_numbers(given: argparse.Namespace, limits: Mapping[str, tuple[int, int]]) -> None:
    """:raises ConfigError: for an option, where it is given, that is not between its two limits."""
    for name, (least, most) in limits.items():
        value = getattr(given, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"--{name} {value}: a number from {least} to {most:,} was expected")


def load_files(arguments: list[str]) -> Loaded:
    """Files, then flags."""
    from hekaton.config import load
    from hekaton.config.flags import split_files

    files, flags = split_files(arguments)
    return load(files, flags)


def as_path(text: str) -> Path:
    """:raises ConfigError: for what is no path, or a home folder that is not known."""
    try:
        return Path(expanded(text))
    except ValueError as e:
        raise ConfigError(f"'{text}': {e}") from e


def take_number(
    arguments: list[str], flag: str, *, at_least: int, at_most: int = 2**31
) -> tuple[int | None, list[str]]:
    """Take ``FLAG N`` out of the arguments; ``None`` where it is not among them."""
    found = None
    others = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != flag:
            others.append(argument)
            continue
        value = value if equals else next(rest, "")
        if found is not None:
            raise ConfigError(f"{flag} is given more than once", hint="give it once")
        if not (value.isascii() and value.isdecimal()) or int(value[:20]) < at_least:
            raise ConfigError(f"{flag} needs a number, at least {at_least}, not '{value}'")
        if int(value[:20]) > at_most:
            raise ConfigError(f"{flag} needs a number, at most {at_most}, not '{value}'")
        found = int(value)
    return found, others


def take_texts(arguments: list[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Take ``--NAME VALUE`` out of the arguments, for every name that has a default.

    :raises ConfigError: for one without its value, or that is given twice.
    """
    values, others = dict(defaults), []
    given = set()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.removeprefix("--") not in defaults or not name.startswith("--"):
            others.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{name} needs a value")
        if name in given:
            raise ConfigError(f"{name} is given more than once", hint="give it once")
        given.add(name)
        values[name.removeprefix("--")] = value
    return values, others
