"""The hook reference: every hook, the record that it returns, and what those records build."""

from __future__ import annotations

from generator import source
from generator.installed import plugins
from generator.markdown import link, table
from hekaton.contributions import API_VERSION
from hekaton.plugins import CONTRIBUTION_HOOKS, kind_name

INTRODUCTION = f"""\
# Hooks

A plugin is a module whose functions are marked with `@hookimpl` (from `hekaton.contributions`). This page
lists every hook that hekaton calls, with its exact signature, the record that it returns, and the interfaces
of what those records build. [Write a plugin](../how-to/plugins.md) shows how they go together.

The plugin API has version {API_VERSION}. A plugin module states the range that it was built for, for example
`HEKATON_API = ">=1,<2"`; outside that range it is listed as incompatible and takes no part. What is
deprecated works for two minor versions: [How the plugin API changes](deprecation.md).
"""

RECORDS = """\
## Records

What contribution hooks return. A record names heavy code with a `Ref` instead of importing it; each kind of
record is described below, with its hook.
"""

CONTRIBUTIONS = """\
## Contribution hooks

Each returns a list of records. A run selects among them by name. Two plugins that contribute the same name
of the same kind are an error, whichever was installed first.
"""

LIFECYCLE = """\
## Lifecycle hooks

They return nothing and are called a few times per step at most, never per microbatch. Implement only those
that you need, with only the parameters that you need.
"""

INTERFACES = """\
## What the records build

The objects behind the `Ref`s. Protocols need no base class: any object with these members will do.
"""

# Reached from the hooks' descriptions only by way of examples.
ALSO = [
    "hekaton.parallel.plan.Stages",
    "hekaton.init.Initializer",
    "hekaton.init.Constant",
    "hekaton.init.Normal",
    "hekaton.init.TruncatedNormal",
    "hekaton.init.DepthScaled",
    "hekaton.metrics.ResumableLogger",
    "hekaton.spec.SteppingConverter",
    "hekaton.weights.ops.RotaryHalves",
    "hekaton.weights.ops.Fuse",
    "hekaton.weights.ops.Unstack",
    "hekaton.weights.ops.Transpose",
    "hekaton.weights.ops.Each",
    "hekaton.weights.ops.Inverse",
    "hekaton.weights.lazy.LazyTensor",
    "hekaton.weights.format.Weights",
    "hekaton.weights.format.WriteOptions",
]


def page() -> str:
    hooks = source.functions("hekaton.plugins.hookspecs")
    contribution = [_contribution_hook(hook) for hook in hooks if hook.name in CONTRIBUTION_HOOKS]
    lifecycle = [_hook(hook) for hook in hooks if hook.name not in CONTRIBUTION_HOOKS]
    named = [source.get_class("hekaton.contributions", name) for name in ("Ref", "Contribution", "Component")]
    built = [source.get_class(*name.rsplit(".", 1)) for name in _interfaces()]
    interfaces = [f"### {each.name}\n\nIn `{each.module}`.\n\n{source.describe(each)}" for each in built]
    parts = [INTRODUCTION, RECORDS, *(f"### {each.name}\n\n{source.describe(each)}" for each in named)]
    parts += [CONTRIBUTIONS, *contribution, LIFECYCLE, *lifecycle, INTERFACES, *interfaces]
    places = {f"{each.module}.{each.name}": f"#{each.name.lower()}" for each in [*named, *built]}
    places["hekaton.config.JobConfig"] = "configuration.md"
    return link("\n\n".join(part.strip() for part in parts), places) + "\n"


def _interfaces() -> list[str]:
    """Full names of the classes that hooks and records refer to, and of those that these refer to in turn."""
    elsewhere = ("hekaton.contributions", "hekaton.errors", "hekaton.config")
    names = [
        *source.references("hekaton.plugins.hookspecs"),
        *source.references("hekaton.contributions"),
        *ALSO,
    ]
    known: dict[str, None] = {}
    while names:
        name = names.pop(0)
        module, _, attribute = name.rpartition(".")
        if module not in elsewhere and name not in known:
            known[name] = None
            names = source.references(module, attribute) + names
    return list(known)


def _hook(hook: source.Function) -> str:
    parts = [f"### {hook.name}", f"```python\n{hook.signature}\n```", hook.doc.text, source.details(hook.doc)]
    return "\n\n".join(filter(None, parts))


def _contribution_hook(hook: source.Function) -> str:
    kind = CONTRIBUTION_HOOKS[hook.name]
    record = source.get_class("hekaton.contributions", kind.__name__)
    contributed = plugins().all(kind)
    rows = [
        [f"`{name}`", f"`{contributed[name].plugin.name}`", f"`{contributed[name].plugin.distribution}`",
         contributed[name].record.summary]
        for name in contributed
    ]  # fmt: skip
    here = (
        table([kind_name(kind), "plugin", "distribution", "summary"], rows)
        if rows
        else "No plugin of this repository contributes one."
    )
    return "\n\n".join([_hook(hook), f"```python\n{_call(record)}\n```", record.doc.text, here])


def _call(record: source.Class) -> str:
    """How a record is made, fields without a default first."""
    fields = sorted(_keywords(record), key=lambda field: bool(field.default))
    arguments = [
        f"{field.name}: {field.type}" + (f" = {field.default}" if field.default else "") for field in fields
    ]
    return f"{record.name}(name: str, *, {', '.join(arguments)})"


def _keywords(record: source.Class) -> list[source.Field]:
    fields = [field for field in record.fields if field.name != "name"]
    for base in record.bases:
        fields += _keywords(source.get_class("hekaton.contributions", base))
    return fields
