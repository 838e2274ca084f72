"""Does a plugin keep the rules, and does everything that it names exist?"""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import types

from hekaton.contributions import Check, Component, Contribution, Model, Ref, Section
from hekaton.errors import HekatonError
from hekaton.plugins import Plugins, kind_name
from hekaton.plugins.requirements import unmet

HEAVY = ("torch", "transformers", "datasets", "torchao")


def check_plugin(plugin: str | types.ModuleType) -> None:
    """Check a plugin by itself, without the others that are installed.

    Its hooks keep the rules, it states the plugin API that it was built for, each record has a summary, each
    :class:`~hekaton.contributions.Ref` whose record has what it needs loads to the kind of thing that it
    should, sections that it names are its own, and importing the module, or one of a rule, imports nothing
    heavy.

    :param plugin: the module that the entry point names, or its name.
    :raises AssertionError: listing everything that is wrong.
    """
    module = importlib.import_module(plugin) if isinstance(plugin, str) else plugin
    plugins = Plugins()
    plugins.register(module, name=module.__name__)
    (info,) = plugins.infos
    wrong = [str(problem) for problem in plugins.problems]
    if info.status != "ok" and not wrong:
        wrong.append(f"{info} is {info.status}: {info.reason}")
    if not hasattr(module, "HEKATON_API"):
        wrong.append("it does not state HEKATON_API, the range of plugin API versions that it was built for")
    for record in plugins.contributions(info):
        wrong += [f"{kind_name(type(record))} '{record.name}': {what}" for what in _wrong(record, plugins)]
    if isinstance(plugin, str):
        wrong += [f"importing {plugin} imports {heavy}; name it with a Ref" for heavy in _imported(plugin)]
        for record in plugins.contributions(info):
            if isinstance(record, Check):
                rules = record.rule.target.partition(":")[0]
                said = f"check '{record.name}': importing {rules} imports"
                wrong += [
                    f"{said} {heavy}, in every run: import it in the rule" for heavy in _imported(rules)
                ]
    assert not wrong, f"plugin module {module.__name__}:\n" + "\n".join(wrong)


def _wrong(record: Contribution, plugins: Plugins) -> list[str]:
    wrong = [] if record.summary else ["it has no summary"]
    if isinstance(record, Component) and record.section and record.section not in plugins.all(Section):
        wrong.append(f"the plugin contributes no section '{record.section}'")
    for field in dataclasses.fields(record):
        ref = getattr(record, field.name)
        if isinstance(ref, Ref) and not unmet(record.needs):
            try:
                wrong += _wrong_object(record, ref.load())
            except HekatonError as e:
                wrong.append(str(e))
    return wrong


def _wrong_object(record: Contribution, loaded: object) -> list[str]:
    if isinstance(record, Model):
        from hekaton.spec import TrainSpec

        if not isinstance(loaded, TrainSpec):
            return [f"spec is no TrainSpec but {loaded!r}"]
        return [] if loaded.name == record.name else [f"its TrainSpec is named '{loaded.name}'"]
    if isinstance(record, Section):
        from hekaton.config import SectionModel

        is_section = isinstance(loaded, type) and issubclass(loaded, SectionModel)
        return [] if is_section else [f"schema is no subclass of SectionModel but {loaded!r}"]
    return [] if callable(loaded) else [f"{loaded!r} cannot be called"]


def _imported(module: str) -> list[str]:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    environment_path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {environment_path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
