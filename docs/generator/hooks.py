"""The hook reference: every hook, the record that it returns, and what those records build."""

from __future__ import annotations

from dataclasses import replace

from generator import source
from generator.annotations import Alias, get_alias, mentioned
from generator.installed import plugins, refs, source_link
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
that you need, with only the parameters that you need. [Plugin](../contracts/plugin.md) has a tested one.
"""

INTERFACES = """\
## What the records build

The objects behind the `Ref`s. Protocols need no base class: any object with these members will do.
"""

TYPES = """\
## Types

Names that stand for types in the signatures above.
"""

FUNCTIONS = """\
## Functions

What a contribution may call.
"""

# Reached from the hooks' descriptions only by way of examples, or never: what a component may be beside.
ALSO = [
    "hekaton.parallel.plan.Stages",
    "hekaton.init.Initializer",
    "hekaton.init.Constant",
    "hekaton.init.Normal",
    "hekaton.init.TruncatedNormal",
    "hekaton.init.DepthScaled",
    "hekaton.metrics.ResumableLogger",
    "hekaton.spec.SteppingConverter",
    "hekaton.data.Whole",
    "hekaton.data.KnownFiles",
    "hekaton.data.ShufflesWithin",
    "hekaton.data.ChecksRows",
    "hekaton.data.JoinedDocuments",
    "hekaton.data.SaysPlaces",
    "hekaton.data.CountsBytes",
    "hekaton.data.KnowsPlaces",
    "hekaton.data.PieceTokenizer",
    "hekaton.weights.ops.RotaryHalves",
    "hekaton.weights.ops.Fuse",
    "hekaton.weights.ops.Unstack",
    "hekaton.weights.ops.Transpose",
    "hekaton.weights.ops.Each",
    "hekaton.weights.ops.Inverse",
    "hekaton.weights.lazy.LazyTensor",
    "hekaton.weights.format.HoldsPart",
    "hekaton.weights.format.Weights",
    "hekaton.weights.format.WriteOptions",
]

CALLED = [
    "hekaton.recomputation.is_recomputed",
    "hekaton.terms.add_term",
    "hekaton.weights.table.entry",
    "hekaton.data.identity.fingerprint",
    "hekaton.layer_choices.choose_linear_layers",
    "hekaton.layer_choices.replace_layers",
]

# Classes of which a contribution uses these members only; the others are for hekaton's own use.
MEMBERS = {
    "hekaton.control.RunControl": ("ask",),
    "hekaton.data.feed.Feed": ("made", "kept", "spans", "available", "take", "leave"),
}

# Described elsewhere (configuration, records) or not for contributions.
ELSEWHERE = ("hekaton.contributions", "hekaton.errors", "hekaton.config", "hekaton.plugins", "hekaton.urls")


def page() -> str:
    hooks = source.functions("hekaton.plugins.hookspecs")
    contribution = [_contribution_hook(hook) for hook in hooks if hook.name in CONTRIBUTION_HOOKS]
    lifecycle = [_lifecycle_hook(hook) for hook in hooks if hook.name not in CONTRIBUTION_HOOKS]
    named = [source.get_class("hekaton.contributions", name) for name in ("Ref", "Contribution", "Component")]
    classes, aliases = _interfaces()
    built = [_public(name) for name in classes]
    interfaces = [_described(each.name, each.module, source.describe(each)) for each in built]
    called = []
    for name in CALLED:
        module, _, attribute = name.rpartition(".")
        called.append(_described(attribute, module, _function(source.get_function(module, attribute))))
    rows = [[f"`{each.name}`", f"`{each.module}`", f"`{each.value}`"] for each in aliases]
    types = table(["type", "in", "stands for"], sorted(rows))
    parts = [INTRODUCTION, RECORDS, *(f"### {each.name}\n\n{source.describe(each)}" for each in named)]
    parts += [CONTRIBUTIONS, *contribution, LIFECYCLE, *lifecycle, INTERFACES, *interfaces]
    parts += [TYPES, types, FUNCTIONS, *called]
    places = {f"{each.module}.{each.name}": f"#{each.name.lower()}" for each in [*named, *built]}
    places["hekaton.config.JobConfig"] = "configuration.md"
    return link("\n\n".join(part.strip() for part in parts), places) + "\n"


def _interfaces() -> tuple[list[str], list[Alias]]:
    """Full names of the classes that hooks and records refer to, and of those that these refer to in turn, in
    their text or in their annotations; and the aliases in these annotations."""
    names = [
        *source.references("hekaton.plugins.hookspecs"),
        *source.references("hekaton.contributions"),
        *(f"{module}.{name}" for module, name in mentioned("hekaton.plugins.hookspecs")),
        *ALSO,
    ]
    classes: dict[str, None] = {}
    aliases: dict[str, Alias] = {}
    while names:
        name = names.pop(0)
        module, _, attribute = name.rpartition(".")
        if module.startswith(ELSEWHERE) or name in classes or name in aliases:
            continue
        alias = get_alias(module, attribute)
        if alias is not None:
            aliases[name] = alias
            continue
        classes[name] = None
        annotated = mentioned(module, attribute, MEMBERS.get(name, ()))
        names = source.references(module, attribute) + names + [".".join(each) for each in annotated]
    return list(classes), list(aliases.values())


def _public(name: str) -> source.Class:
    """A class with the members that a contribution uses."""
    module, _, attribute = name.rpartition(".")
    described = source.get_class(module, attribute)
    members = MEMBERS.get(name)
    if members is None:
        return described
    fields = tuple(field for field in described.fields if field.name in members)
    methods = tuple(method for method in described.methods if method.name in members)
    assert {each.name for each in [*fields, *methods]} == set(members), name
    return replace(described, fields=fields, methods=methods)


def _described(name: str, module: str, text: str) -> str:
    return f"### {name}\n\nIn `{module}`.\n\n{text}"


def _hook(hook: source.Function) -> str:
    return f"### {hook.name}\n\n{_function(hook)}"


def _lifecycle_hook(hook: source.Function) -> str:
    template = source_link("what `hekaton new` writes", f"hekaton.scaffold.templates:{hook.name}")
    return f"{_hook(hook)}\n\nIn this repository: {template}, which its tests run."


def _function(function: source.Function) -> str:
    parts = [f"```python\n{function.signature}\n```", function.doc.text, source.details(function.doc)]
    return "\n\n".join(filter(None, parts))


def _contribution_hook(hook: source.Function) -> str:
    kind = CONTRIBUTION_HOOKS[hook.name]
    record = source.get_class("hekaton.contributions", kind.__name__)
    contributed = plugins().all(kind)
    rows = []
    for name, found in contributed.items():
        info = found.plugin
        record_source = source_link(f"`{name}`", refs(found.record)[0].target)
        hook_source = source_link(f"`{info.name}`", f"{info.module}:{hook.name}")
        rows.append([record_source, hook_source, f"`{info.distribution}`", found.record.summary])
    ours = table([kind_name(kind), "plugin", "distribution", "summary"], rows)
    return "\n\n".join([_hook(hook), f"```python\n{_call(record)}\n```", record.doc.text, ours])


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
