"""Does a plugin that follows a run keep its contract, at every step and in what it asks for?"""

from __future__ import annotations

import importlib
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hekaton.config import load
from hekaton.config.flags import split_files
from hekaton.control import Request, RunControl
from hekaton.plugins import Plugins


def check_run_hooks(
    plugin: str | types.ModuleType, *arguments: str, metrics: Sequence[Mapping[str, float]]
) -> list[Request]:
    """Call a plugin's lifecycle hooks as a run on one process does, twice: from its start and after a resume.

    No hook raises, returns a value or changes the metrics; ``hekaton_step_ended`` gets along with the metrics
    of a step that is not logged, which are empty. What is asked through ``control`` is carried out: a save
    calls ``hekaton_checkpoint_saved``, a stop ends the run.

    :param plugin: the module that the entry point names, or its name.
    :param arguments: of ``hekaton train``, for the configuration that ``hekaton_run_started`` is given.
    :param metrics: those of each logged step, such as ``[{"loss": 3.0}, {"loss": 1.9}]``.
    :returns: what was asked after each logged step of the first run, as far as that went.
    :raises AssertionError: naming the hook and what is wrong with it.
    """
    module = importlib.import_module(plugin) if isinstance(plugin, str) else plugin
    plugins = Plugins()
    plugins.register(module, name=module.__name__)
    assert not plugins.problems, "\n".join(map(str, plugins.problems))
    (info,) = plugins.infos
    assert info.status == "ok", f"{info} is {info.status}: {info.reason}"
    assert plugins.lifecycle_hooks(info), f"{info} implements no lifecycle hook"
    config = load(*split_files(arguments)).config
    asked = _run(plugins, config, metrics, done=0)
    _run(plugins, config, metrics, done=100)
    return asked


def _run(
    plugins: Plugins, config: Any, metrics: Sequence[Mapping[str, float]], *, done: int
) -> list[Request]:
    control, asked, step = RunControl(), [], done
    _call(plugins, "hekaton_run_started", config=config, step=step, control=control)
    for logged in metrics:
        for given in ({}, logged):
            step += 1
            view = types.MappingProxyType(dict(given))
            _call(plugins, "hekaton_step_ended", step=step, metrics=view, control=control)
            request = control.agreed()
            if request.save:
                with tempfile.TemporaryDirectory() as folder:
                    _call(plugins, "hekaton_checkpoint_saved", step=step, folder=Path(folder, f"step-{step}"))
            if given or request != Request():
                asked.append(request)
            if request.stop:
                break
        if request.stop:
            break
    _call(plugins, "hekaton_run_ended", step=step, error=None)
    return asked


def _call(plugins: Plugins, hook: str, **arguments: Any) -> None:
    try:
        returned = plugins.call(hook, **arguments)
    except Exception as e:
        given = ", ".join(
            f"{name}={value!r}" for name, value in arguments.items() if name in ("step", "metrics")
        )
        raise AssertionError(f"{hook}({given}) raised {type(e).__name__}: {e}") from e
    assert not returned, f"{hook} returned {returned[0]!r}: a lifecycle hook returns nothing"
