"""The page of plugins that can be installed, from the reviewed list that hekaton ships."""

from __future__ import annotations

from generator.markdown import table
from hekaton.plugins.available import available

PAGE = """\
# Plugins

Distributions whose contracts were tested with hekaton, from a reviewed list; `hekaton plugins --available`
prints it, with what of it is installed.

{rows}

## How to be listed

1. The distribution is on PyPI, with a licence that SPDX has an identifier for, and states `HEKATON_API`.
2. Its tests call `hekaton_conformance` ([Test a plugin](how-to/test-a-plugin.md)), and pass with a release.
3. Add an entry to `core/src/hekaton/plugins/plugins.toml`, with what `hekaton plugins` shows of it.
4. Run `python docs/generate.py`, and open a pull request with a link to the run of those tests.
5. A reviewer installs it, runs its tests, and merges; later versions of hekaton are added in the same way.
"""


def page() -> str:
    rows = [
        [
            f"`{one.package}`",
            one.summary,
            ", ".join(one.kinds),
            ", ".join(f"`{name}`" for name in one.models),
            one.licence,
            one.tested,
        ]
        for one in available()
    ]
    head = ["package", "summary", "kinds", "models", "licence", "tested with hekaton"]
    return PAGE.format(rows=table(head, rows))
