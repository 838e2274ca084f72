"""A change of each field of the configuration at a resume, in both directions: what is declared of it happens."""

from collections.abc import Iterator
from typing import Any

import pytest

from hekaton.config import as_dict, load
from hekaton.config.base import CompatSection, Path, default_of, dotted, is_idle, walk
from hekaton.identity.kept import Identity, in_effect
from hekaton.identity.values import config_meanings, config_values, plain

CONFIG = load([], ["--training.global_batch_size", "64", "--lr_scheduler.total_steps", "10"]).config
"""With the values that others stand for where they are not set."""
MEANINGS = config_meanings(type(CONFIG))
DEFAULTS = {dotted(path): plain(default_of(field)) for path, field, _ in walk(type(CONFIG))}


def changed(section: Any, path: Path) -> Any:
    name, *rest = path
    value = getattr(section, name)
    return section.model_copy(update={name: changed(value, tuple(rest)) if rest else another(value)})


def another(value: Any) -> Any:
    """A value that a rule might refuse: here it matters only that it is another one."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [*value, "more"]
        case dict():
            return {**value, "more": 1}
    return f"{value or ''}more"


def said(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    values = in_effect(config_values(after), {})
    now = Identity(config=values, others={}, contributed=(), meanings=MEANINGS, defaults=DEFAULTS)
    notices, refused = now.changes_since({"config": before}, step=1)
    return {one.field: "notice" for one in notices} | {one.field: "refusal" for one in refused}


def wrong() -> Iterator[tuple[str, dict[str, str]]]:
    first = as_dict(CONFIG)
    for path, field, inside in walk(type(CONFIG)):
        if is_idle(field) or issubclass(inside[-1], CompatSection):
            continue
        name, other = dotted(path), as_dict(changed(CONFIG, path))
        expected = {} if MEANINGS[name] == "nothing" else {name: MEANINGS[name]}
        yield from ((name, one) for one in (said(first, other), said(other, first)) if one != expected)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_change_of_each_field_means_what_is_declared() -> None:
    assert list(wrong()) == []
