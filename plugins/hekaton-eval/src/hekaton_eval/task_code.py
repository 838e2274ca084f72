"""Task files of the harness are read as data, unless a user trusts what they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval.api.metrics  # fills the registry
import lm_eval.api.task
import lm_eval.tasks
import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import _yaml_loader

from hekaton.errors import ConfigError

WAY_ON = (
    "read it; --trust_task_code (in a run: [evaluation] trust_task_code = true) runs what task files name"
)
_OF_THE_HARNESS = Path(lm_eval.tasks.__file__).resolve().parent


@contextmanager
def read_as_data(*, trusted: bool) -> Iterator[None]:
    """While tasks are loaded: refuse those outside of the harness whose file names a Python function, and
    metrics that are programs of the Hub.

    Their templates stay in jinja2's sandbox from then on.

    :raises ConfigError: inside, with the function and the folder, or the metric.
    """
    _sandbox_templates()
    if trusted:
        yield
        return
    of_yaml = _yaml_loader._import_func_in_yml
    of_name = lm_eval.api.task.get_metric

    def function(name: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(_OF_THE_HARNESS):
            raise ConfigError(
                f"a task file in '{folder}' names the Python function '{name}' (!function)",
                hint=WAY_ON,
            )
        return of_yaml(name, folder)

    def metric(name: str, hf_evaluate_metric: bool = False) -> Callable[..., Any] | None:
        if hf_evaluate_metric or name not in metric_registry:
            raise ConfigError(
                f"metric '{name}' is none of the harness's own: the evaluate library would run a program of "
                "that name, from a folder or the Hub",
                hint=WAY_ON,
            )
        found: Callable[..., Any] | None = of_name(name)
        return found

    with (
        patch.object(_yaml_loader, "_import_func_in_yml", function),
        patch.object(lm_eval.api.task, "get_metric", metric),
    ):
        yield


def _sandbox_templates() -> None:
    """A template of a task could reach any function of Python by the attributes of a string."""
    harness = lm_eval.utils.env
    if isinstance(harness, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=harness.loader,
        undefined=harness.undefined,
        keep_trailing_newline=harness.keep_trailing_newline,
    )
    sandbox.filters.update(harness.filters)
    lm_eval.utils.env = sandbox
