"""What the other kinds promise: optimizers, schedules, loggers, rules, verbs, sections."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hekaton.contributions import Check, Command, Component, Section
from hekaton.testing.conformance.subject import SMALL_MODEL, CheckedContribution
from hekaton.testing.logger import check_logger
from hekaton.testing.optimizer import check_optimizer
from hekaton.testing.plugin import check_plugin
from hekaton.testing.rule import check_rule
from hekaton.testing.run_hooks import check_run_hooks
from hekaton.testing.schedule import check_schedule


def rules(subject: CheckedContribution) -> None:
    check_plugin(_module(subject))


def run_hooks(subject: CheckedContribution) -> None:
    losses = (5.0, 0.5, 0.0, float("nan"))
    check_run_hooks(
        _module(subject), *subject.base, metrics=[{"loss": loss, "grad_norm": 1.0} for loss in losses]
    )


def steps(subject: CheckedContribution) -> None:
    check_optimizer(_build(subject), section=subject.section, settings=subject.loaded.config.optimizer)


def factors(subject: CheckedContribution) -> None:
    check_schedule(_build(subject), section=subject.section, settings=subject.loaded.config.lr_scheduler)


def metrics(subject: CheckedContribution) -> None:
    check_logger(_build(subject), section=subject.section)


def failure(subject: CheckedContribution) -> None:
    """Log into a folder below a file, where nothing can be."""
    with tempfile.TemporaryDirectory() as around:
        file = Path(around, "file")
        file.touch()
        try:
            with contextlib.closing(_build(subject)(subject.section, file / "logs")) as logger:
                logger.log(1, {"loss": 1.0})
        except Exception:
            return
        inside = [path for path in Path(around).rglob("*") if path != file]
        assert not file.read_bytes(), "it writes into a file where its folder should be"
        assert inside, "it cannot write what it logs, and raises nothing"


def rule(subject: CheckedContribution) -> None:
    assert isinstance(subject.record, Check)
    load = ["--plugins.load", ",".join(dict.fromkeys([*subject.load, SMALL_MODEL]))]
    others = CheckedContribution(subject.module, None, (), load).base
    check_rule(subject.record.rule.load(), *subject.run, others=others)


def values(subject: CheckedContribution) -> None:
    build, config = _build(subject), subject.loaded.config
    found = dict(build(subject.section, config))
    try:
        same = json.loads(json.dumps(found)) == found
    except TypeError as e:
        raise AssertionError(f"its values cannot be written as JSON: {e}") from e
    assert same, f"JSON changes its names or values: {found}"
    assert dict(build(subject.section, config)) == found, "its values differ each time"


def printed_help(subject: CheckedContribution) -> None:
    """In a fresh interpreter, in which torch cannot be imported unless the plugin is one file."""
    assert isinstance(subject.record, Command)
    module = subject.record.run.target.partition(":")[0]
    one_file = subject.module.endswith(".py") and module == Path(subject.module).stem
    without = "" if one_file else "sys.modules['torch'] = None"
    code = (
        f"import sys; sys.path[:] = {[entry for entry in sys.path if entry]!r}; {without}\n"
        "from hekaton.contributions import Ref\n"
        f"sys.exit(Ref({subject.record.run.target!r}).load()(['--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    last = done.stderr.strip().splitlines()[-1:]
    assert done.returncode == 0, f"--help exits with {done.returncode}: {''.join(last)}"
    assert "usage" in done.stdout.lower(), f"--help does not say how it is used: {done.stdout[:200]!r}"


def fields(subject: CheckedContribution) -> None:
    assert isinstance(subject.record, Section)
    schema = subject.record.schema.load()
    for name, described in schema.model_fields.items():
        assert described.description, f"the field '{name}' has no help: write a docstring below it"
    built = schema()
    again = schema.model_validate(built.model_dump())
    assert again == built, "with its defaults written out it is another section"


def _module(subject: CheckedContribution) -> str | ModuleType:
    """The plugin's module, or where it is a file the module that this is imported as."""
    if not subject.module.endswith(".py"):
        return subject.module
    from hekaton.plugins.discovery import import_unpackaged

    return import_unpackaged(subject.module)


def _build(subject: CheckedContribution) -> Any:
    assert isinstance(subject.record, Component)
    record: Any = subject.record
    return record.build.load()
