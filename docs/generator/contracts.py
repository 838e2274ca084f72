"""The contracts: a page for each kind of contribution, with its promises, and an example that tests run."""

from __future__ import annotations

import ast

from generator import source
from generator.contract_facts import FACTS, Facts
from generator.hooks import _call, _public
from generator.installed import plugins, refs, source_link
from generator.markdown import link, table
from hekaton.contributions import Contribution
from hekaton.plugins import CONTRIBUTION_HOOKS, kind_name
from hekaton.scaffold.kinds import KINDS
from hekaton.scaffold.render import template
from hekaton.testing.conformance.promises import PROMISES, page_of

INDEX = """\
# Contracts

What each kind of contribution is given, what it must keep, and which test says so. Every page ends with a
complete example: the code that `hekaton new` writes, which the tests of this repository run.

{table}

In a test of your own,

```python
def test_conforms(hekaton_conformance):
    hekaton_conformance("my-distribution", "run.toml")
```

is a test for each promise of each contribution, and what fails names its line here.
"""


def pages() -> dict[str, str]:
    """Path below ``docs`` -> text."""
    kinds = CONTRIBUTION_HOOKS
    found = {f"contracts/{page_of(kind)}.md": _page(hook, kind) for hook, kind in kinds.items()}
    found["contracts/plugin.md"] = _plugin_page()
    rows = [["[plugin](plugin.md)", "", str(_count(None))]]
    rows += [
        [f"[{kind_name(kind)}]({page_of(kind)}.md)", f"`{hook}`", str(_count(kind))]
        for hook, kind in kinds.items()
    ]
    found["contracts/index.md"] = INDEX.format(table=table(["kind", "hook", "promises"], rows))
    return found


def _count(kind: type[Contribution] | None) -> int:
    return sum(promise.kind is kind for promise in PROMISES)


TOLERANCE = "Numbers are compared: a test may state a [tolerance](../how-to/test-a-plugin.md#what-rounds)."


def _promises(kind: type[Contribution] | None) -> str:
    parts = [
        f"### {promise.name}\n\n{promise.says}" + (f"\n\n{TOLERANCE}" if promise.compares else "")
        for promise in PROMISES
        if promise.kind is kind
    ]
    return "## Promises\n\n" + "\n\n".join(parts or ["Those of the [plugin](plugin.md) alone."])


def _plugin_page() -> str:
    module = template("__init__")
    tree = ast.parse(module)
    hooks = [
        one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name not in CONTRIBUTION_HOOKS
    ]
    return (
        "\n\n".join(
            [
                "# Plugin",
                "The module with the hooks, which the entry point names. "
                "[Write a plugin](../how-to/plugins.md) describes it, and the "
                "[hook reference](../reference/hooks.md#lifecycle-hooks) lifecycle hooks.",
                _promises(None),
                "## Example",
                "```python\n" + "\n\n\n".join(_segment(module, hook) for hook in hooks) + "\n```",
                "## In this repository",
                f"All of these in {source_link('the plugin', 'hekaton.scaffold.templates')} from which "
                "`hekaton new run_hooks NAME` writes one.",
            ]
        )
        + "\n"
    )


def _page(hook: str, kind: type[Contribution]) -> str:
    facts = FACTS[kind.__name__]
    (function,) = [one for one in source.functions("hekaton.plugins.hookspecs") if one.name == hook]
    record = source.get_class("hekaton.contributions", kind.__name__)
    parts = [
        f"# {kind_name(kind).replace('hf', 'HF').replace('lr', 'LR')[:1].upper()}"
        f"{kind_name(kind).replace('hf', 'HF').replace('lr', 'LR')[1:]}",
        f"```python\n{function.signature}\n```",
        function.doc.text.partition("\n\nExample:")[0],
        *(text for title, text in function.doc.others if title == "Returns"),
        f"```python\n{_call(record)}\n```",
        record.doc.text,
        f"**When and where.** {facts.when}",
        f"**Layouts.** {facts.layouts}",
        f"**State.** {facts.state}",
        _promises(kind),
    ]
    if facts.builds:
        parts.append("## What it builds")
        for name in facts.builds:
            module, _, attribute = name.rpartition(".")
            parts += [f"### {attribute}", f"In `{module}`.", source.describe(_public(name))]
    parts += ["## Example", *_example(hook, facts)]
    parts += _ours(hook, kind)
    places = {name: f"#{name.rpartition('.')[2].lower()}" for name in facts.builds}
    return link("\n\n".join(part.strip() for part in parts if part), places) + "\n"


def _example(hook: str, facts: Facts) -> list[str]:
    """The hook of the templates, and the modules that it names."""
    kind = KINDS[facts.template]
    module = template("__init__")
    (function,) = [one for one in ast.parse(module).body if getattr(one, "name", "") == hook]
    parts = [
        f"What `hekaton new {kind.name} NAME` writes, where its names are not yet replaced.",
        f"```python\n{_segment(module, function)}\n```",
    ]
    files = ["settings"] if hook == "hekaton_sections" else list(kind.files)
    if hook == "hekaton_hf_adapters":
        files = ["hugging_face"]
    elif hook == "hekaton_models":
        files = ["model"]
    return parts + [f"```python\n{template(file)}```" for file in files]


def _segment(text: str, node: ast.stmt) -> str:
    decorators = getattr(node, "decorator_list", [])
    begin = min([node.lineno, *(one.lineno for one in decorators)])
    return "\n".join(text.splitlines()[begin - 1 : node.end_lineno])


def _ours(hook: str, kind: type[Contribution]) -> list[str]:
    """The first contribution of this repository, and its source."""
    name, contributed = next(iter(plugins().all(kind).items()))
    info = contributed.plugin
    target = refs(contributed.record)[0].target
    return [
        "## In this repository",
        f"`{name}` of `{info.distribution}`: {source_link(f'`{target}`', target)}, contributed by "
        f"{source_link(f'`{hook}`', f'{info.module}:{hook}')}; `hekaton plugins {name}` shows it.",
    ]
