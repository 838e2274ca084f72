"""What the templates of a task name, compared with the columns of its data."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Sequence
from typing import Any

import lm_eval.utils
from jinja2 import TemplateSyntaxError, meta
from lm_eval.api.task import ConfigurableTask

from hekaton.errors import ConfigError

FIELDS = ("doc_to_text", "doc_to_target", "doc_to_choice")
_LIKE = 0.75
_SHOWN = 20


def check_templates(name: str, task: Any) -> None:
    """The harness takes a word that is no column for a text, the same for each document; and what a template
    names is looked for only where it is rendered.

    :raises ConfigError: for what is almost a column.
    """
    columns = getattr(task, "features", None)
    if not isinstance(task, ConfigurableTask) or columns is None:
        return
    for field in FIELDS:
        said = task.get_config(field)
        for word in _named(said) if isinstance(said, str) and said not in columns else ():
            near = difflib.get_close_matches(word, columns, n=1, cutoff=_LIKE)
            if word not in columns and near:
                itself = f"; for the word itself write {{{{ '{word}' }}}}" if word == said else ""
                raise ConfigError(
                    f"{field} of task '{name}' names '{word}', and its data has no such column",
                    hint=f"did you mean '{near[0]}'?{itself}",
                )


def error_of_template(error: Exception) -> ConfigError | None:
    """The error of a template with its field and task; ``None`` for one from elsewhere."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        field, task = frame.f_code.co_name, frame.f_locals.get("self")
        if field in FIELDS and isinstance(task, ConfigurableTask):
            name = task.config.task
            try:
                check_templates(name, task)
            except ConfigError as found:
                return found
            there = ", ".join(getattr(task, "features", [])[:_SHOWN])
            return ConfigError(
                f"{field} of task '{name}' gives no text: {type(error).__name__}: {_first_line(error)}",
                hint=f"its data has the columns {there}",
            )
    return None


def _named(said: str) -> Sequence[str]:
    """The names that a template needs; those are not, which it asks whether they are there."""
    if said.isidentifier():
        return [said]
    try:
        names = meta.find_undeclared_variables(lm_eval.utils.env.parse(said))
    except TemplateSyntaxError:
        return ()  # its own error
    asked = r"\b{}\s*(is\s+(not\s+)?(un)?defined|\|\s*(default|d)\b)"
    return sorted(
        name
        for name in names
        if name not in lm_eval.utils.env.globals and not re.search(asked.format(name), said)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no more is said").splitlines()[0]
