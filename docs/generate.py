"""Write the reference pages of the documentation from the code.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with status 1 and name those that are not up to date

The pages depend on the code alone, not on the width of the terminal or on other people's plugins that happen
to be installed.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from generator import (
    available,
    cli,
    combinations,
    configuration,
    contracts,
    hooks,
    identity,
    python_api,
    tutorial,
)

DOCS = Path(__file__).resolve().parent
PAGES = {
    "reference/configuration.md": configuration.page,
    "reference/hooks.md": hooks.page,
    "reference/combinations.md": combinations.page,
    "reference/identity.md": identity.page,
    "reference/cli.md": cli.page,
    "reference/python.md": python_api.page,
    "plugins.md": available.page,
    "tutorial.md": tutorial.page,
    **{name: partial(str, text) for name, text in contracts.pages().items()},
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale = []
    for name, page in PAGES.items():
        path = DOCS / name
        text = page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(DOCS.parent))
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(DOCS.parent)}")
    if arguments and stale:
        names = ", ".join(map(str, stale))
        print(f"not up to date with the code: {names}\n  run: python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
