"""A model's configuration with some of its fields replaced, each value checked against the field's type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from hekaton.errors import ConfigError, ConfigErrors, HekatonError, choices_hint

Path = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class WrongOverride:
    """What is wrong with one value.

    :param path: the field, and where that is a dataclass of its own, the field in it; empty when the
        configuration as a whole refuses the values.
    :param unknown: whether there is no such field.
    :param detail: pydantic's error, for a value that is not of the field's type.
    :param message: otherwise, what is wrong.
    """

    path: Path
    unknown: bool = False
    detail: Any = None
    message: str = ""
    hint: str = ""

    def __str__(self) -> str:
        if self.unknown:
            return "no such field"
        return self.message or str(self.detail["msg"])


def override(model: T, overrides: Mapping[str, Any], name: str) -> T:
    """The configuration with some of its fields replaced.

    :raises ConfigErrors: for fields that it does not have, and values that it does not take.
    """
    if not overrides:
        return model
    replaced, wrong = overridden(model, overrides)
    if wrong:
        raise ConfigErrors(
            [
                ConfigError(f"{'.'.join(('model.overrides', *one.path))} of {name}: {one}", hint=one.hint)
                for one in wrong
            ]
        )
    return replaced


def overridden(settings: T, overrides: Mapping[str, Any]) -> tuple[T, list[WrongOverride]]:
    """A configuration with the fields that ``overrides`` names replaced, and everything that is wrong.

    A table replaces fields of a nested dataclass, or makes one where there is none. What the dataclass itself
    raises in ``__post_init__`` is wrong too.

    :param settings: a dataclass.
    :param overrides: field -> value, as TOML or JSON gives it.
    """
    return _replaced(settings, overrides, ())


def mistyped(settings: Any) -> list[WrongOverride]:
    """The values of a configuration that its fields' types do not take, such as a size of 0."""
    if not is_dataclass(settings):
        return []
    return [one for one in overridden(settings, _as_table(settings))[1] if one.detail is not None]


def _as_table(settings: Any) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    return {name: _as_table(value) if is_dataclass(value) else value for name, value in values.items()}


def _replaced(settings: Any, overrides: Mapping[str, Any], at: Path) -> tuple[Any, list[WrongOverride]]:
    current = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values, wrong = _values(type(settings), current, overrides, at)
    if wrong:
        return settings, wrong
    try:
        return replace(settings, **values), []
    except _REFUSALS as e:
        return settings, [_refused(e, at)]


def _made(kind: Any, given: Mapping[str, Any], at: Path) -> tuple[Any, list[WrongOverride]]:
    values, wrong = _values(kind, {}, given, at)
    missing = [field.name for field in fields(kind) if _is_required(field) and field.name not in given]
    if missing:
        wrong.append(WrongOverride(path=at, message=f"needs {', '.join(missing)}"))
    if wrong:
        return None, wrong
    try:
        return kind(**values), []
    except _REFUSALS as e:
        return None, [_refused(e, at)]


_REFUSALS = (HekatonError, ValueError, TypeError, AssertionError, ArithmeticError)
"""What a dataclass refuses its values with."""


def _refused(error: Exception, at: Path) -> WrongOverride:
    if isinstance(error, HekatonError):
        return WrongOverride(path=at, message=error.message, hint=error.hint)
    return WrongOverride(path=at, message=str(error) or type(error).__name__)


def _values(
    kind: Any, current: Mapping[str, Any], given: Mapping[str, Any], at: Path
) -> tuple[dict[str, Any], list[WrongOverride]]:
    known = [field.name for field in fields(kind) if field.init]
    hints = _hints(kind)
    values, wrong = {}, []
    for name, value in given.items():
        path = (*at, name)
        if name not in known:
            wrong.append(WrongOverride(path=path, unknown=True, hint=choices_hint(name, known)))
            continue
        values[name], its = _built(hints.get(name, Any), value, current.get(name), path)
        wrong += its
    return values, wrong


def _built(hint: Any, value: Any, current: Any, path: Path) -> tuple[Any, list[WrongOverride]]:
    kinds = list(_dataclasses(hint))
    if isinstance(value, Mapping) and kinds:
        if type(current) in kinds:
            return _replaced(current, value, path)
        fitting = [kind for kind in kinds if set(value) <= {field.name for field in fields(kind)}]
        return _made((fitting or kinds)[0], value, path)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value, []  # a type that only the model's author knows how to check
    try:
        # As JSON, in which a list will do for a tuple, and a name for an enumeration.
        return adapter.validate_json(json.dumps(value, default=str), strict=True), []
    except ValidationError as e:
        return None, [WrongOverride(path=path, detail=e.errors()[0])]


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations of names that exist for type checkers only
        return {}


def _dataclasses(hint: Any) -> Iterator[Any]:
    """The dataclasses that a hint names: itself, or members of its union."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    elif not isinstance(hint, type):
        for inner in get_args(hint):
            if isinstance(inner, type) and is_dataclass(inner):
                yield inner


def _is_required(field: Field[Any]) -> bool:
    return field.init and field.default is MISSING and field.default_factory is MISSING
