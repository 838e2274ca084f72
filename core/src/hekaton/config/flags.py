"""Flags: ``--section.field value``, read by what the sections say, and the help that they give.

pydantic-settings was tried: it cannot give the form ``--section.no-field``, nor keys of a dict as
``--section.field.key``, and stops at the first flag that is wrong without naming the nearest right one.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hekaton.config.base import (
    OnlyWith,
    Path,
    SectionModel,
    default_of,
    dotted,
    is_idle,
    marks,
    section_class,
    shortened,
    toml_value,
    walk,
)
from hekaton.config.plain import MAX_DEPTH, check_plain
from hekaton.errors import ConfigError
from hekaton.json_text import KeyTwice, parsed

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Flag:
    """A flag as it was given, and what it sets.

    :param text: the flag itself, without its value.
    """

    path: Path
    value: Any
    text: str


def split_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take apart the arguments after a verb: files come first, then flags."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("--")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def wants_help(arguments: Sequence[str]) -> bool:
    return any(argument in HELP for argument in arguments)


def parse_flags(
    config: type[SectionModel], arguments: Sequence[str]
) -> tuple[list[Flag], list[ConfigError], list[str]]:
    """Read flags as the sections of ``config`` say.

    Values are converted as far as their form goes; whether they are valid is for the sections to say. A list
    given twice is longer; of another flag given twice, or a key of a table, the last one is used.

    :returns: the flags, what is wrong with others, and notices.
    """
    flags: dict[Path, Flag] = {}
    problems: list[ConfigError] = []
    notices = []
    given: set[Path] = set()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            hint = "files come before flags; lists are a,b,c"
            problems.append(ConfigError(f"unexpected argument '{argument}'", hint=hint))
            continue
        text, equals, value = argument.partition("=")
        try:
            path, found, negative = _find(config, text)
            flag = Flag(path, _take(found, text, value if equals else None, rest, negative), text)
            check_plain(flag.value, path, lambda _, text=text: text)  # type: ignore[misc]
        except ConfigError as e:
            problems.append(e)
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)  # its value, most likely
            continue
        before = flags.pop(path, None)
        if before is not None and isinstance(before.value, list) and isinstance(flag.value, list):
            flag = Flag(path, before.value + flag.value, text)
        else:
            notices += [
                f"--{place} is given more than once; the last one is used"
                for place in twice(path, flag.value, given)
            ]
        flags[path] = flag
    return list(flags.values()), problems, notices


def twice(path: Path, value: Any, given: set[Path]) -> list[str]:
    """The fields, and keys of tables, of a value that ``given`` has already; it has the others afterwards."""
    leaves = set(_leaves(path, value))
    again = sorted(leaves & given)
    given |= leaves
    return [dotted(leaf) for leaf in again]


def _leaves(path: Path, value: Any) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves((*path, str(key)), inner)
    else:
        yield path


def _find(config: type[SectionModel], text: str) -> tuple[Path, FieldInfo | None, bool]:
    """The field that a flag names (``None`` for a key of a dict), and whether it says ``no-``."""
    names = text.removeprefix("--").split(".")
    owner = config
    for position, name in enumerate(names):
        last = position == len(names) - 1
        field = owner.model_fields.get(name)
        if field is None and last and name.startswith("no-"):
            field = owner.model_fields.get(name.removeprefix("no-"))
            if field is not None and bool in kinds(field.annotation):
                return (*names[:-1], name.removeprefix("no-")), field, True
            field = None
        if field is None:
            break
        inner = section_class(field)
        if inner is None:
            if last:
                return tuple(names), field, False
            if dict in kinds(field.annotation) and len(names) <= MAX_DEPTH and all(names):
                return tuple(names), None, False
            break
        owner = inner
    text = shortened(text)
    known = [f"--{dotted(path)}" for path, _, _ in walk(config)]
    elsewhere = [flag for flag in known if flag.rpartition(".")[2] == names[-1]]
    near = elsewhere[:3] or difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {' or '.join(near)}?" if near else "hekaton train --help lists all flags"
    raise ConfigError(f"unknown flag {text}", hint=hint)


def _take(field: FieldInfo | None, text: str, value: str | None, rest: list[str], negative: bool) -> Any:
    """The value of a flag, from its own argument or the next one."""
    boolean = field is not None and bool in kinds(field.annotation)
    if negative:
        if value is not None:
            raise ConfigError(f"{text} takes no value")
        return False
    if value is None and boolean and not (rest and rest[0].lower() in ("true", "false")):
        return True
    if value is None:
        if not rest or rest[0].startswith("--"):
            raise ConfigError(f"{text} needs a value")
        value = rest.pop(0)
    return _json_or(value, value) if field is None else read_value(field.annotation, value)


_COMMA = re.compile(r",(?![^{}]*})")  # not one in braces, which is a pattern's


def read_value(annotation: Any, text: str) -> Any:
    """The value that ``text`` writes for a field of this type; ``text`` itself where it writes none."""
    allowed = kinds(annotation)
    if text == "None" and type(None) in allowed:
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if list in allowed:
        if text.startswith("["):
            return _json_or(text, text)
        items = [item.strip() for item in _COMMA.split(text)] if text else []
        return [item if str in _item_kinds(annotation) else _number(item) for item in items]
    if dict in allowed:
        return _json_or(text, text)
    return text if str in allowed else _number(text)


def kinds(annotation: Any) -> frozenset[Any]:
    """The plain types that a field may hold: ``list[str] | None`` -> ``{list, NoneType}``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds(get_args(annotation)[0])
    if origin is Literal:
        return frozenset(type(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return frozenset().union(*map(kinds, get_args(annotation)))
    plain = origin or annotation
    return frozenset([list if plain in (tuple, set, frozenset, Sequence) else plain])


def _item_kinds(annotation: Any) -> frozenset[Any]:
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return frozenset().union(*map(_item_kinds, get_args(annotation)))
    return frozenset().union(*map(kinds, get_args(annotation)))


def _number(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _json_or(text: str, otherwise: Any) -> Any:
    try:
        return parsed(text)
    except KeyTwice as error:
        raise ConfigError(f"{shortened(text)}: {error}", hint="give it once") from None
    except ValueError:
        return otherwise
    except RecursionError:
        raise ConfigError(f"{shortened(text)}: nested too deeply") from None


INTRODUCTION = """\
A flag is --section.field VALUE or --section.field=VALUE and overrides files.
On or off: --section.field or --section.no-field. Lists: a,b,c. Tables: JSON, or --section.field.key VALUE."""


def help_text(config: type[SectionModel], *, usage: str) -> str:
    """Every flag with its type, default and description."""
    lines = [f"usage: {usage}", "", INTRODUCTION]
    at: Path = ()
    for path, field, inside in walk(config):
        if is_idle(field):
            continue
        if path[:-1] != at:
            at = path[:-1]
            lines += ["", f"[{dotted(at)}]  {_first_line(inside[-1].__doc__)}".rstrip()]
        description = " ".join((field.description or "").replace("``", "").split())
        lines.append(f"  --{dotted(path)} {type_text(field.annotation)}")
        lines += [f"      {line}" for line in _described(description, field)]
    return "\n".join(lines)


def _described(description: str, field: FieldInfo) -> Iterator[str]:
    default = default_of(field)
    said = "" if default is None else f" [default: {toml_value(default)}]"
    words = f"{description}{said}".split()
    line = ""
    for word in words:
        if len(line) + len(word) > 95:
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
    if line:
        yield line
    needs = [str(mark) for mark in marks(field, OnlyWith)]
    if needs:
        yield f"only with {' or '.join(needs)}"


def type_text(annotation: Any) -> str:
    """A type as the help describes it: ``int``, ``list of str``, ``"linear" | "sqrt"``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(toml_value, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments if argument is not type(None))
    if origin in (list, tuple, set):
        return f"list of {type_text(arguments[0])}"
    if origin is dict or annotation is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, SectionModel):
        return "tables"
    return getattr(annotation, "__name__", str(annotation))


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
