"""``hekaton new``: write a distribution of plugins that works, to be changed."""

from __future__ import annotations

import shlex
from pathlib import Path

from hekaton.cli.arguments import as_path, take_texts
from hekaton.errors import ConfigError, choices_hint
from hekaton.scaffold import KINDS, chosen, distribution_files, write
from hekaton.scaffold.licences import LICENCES
from hekaton.scaffold.taken import check_free
from hekaton.scaffold.write import names_of

USAGE = """\
usage: hekaton new KIND NAME [KIND NAME...] [--into FOLDER] [--licence LICENCE] [--author AUTHOR]

Write a distribution that contributes what is asked for, named after the first. It is complete: sources with
types, TOML sections, a run file that trains, tests of every contract, README, licence, workflows of GitHub.

  hekaton new model pocket dataset sums
  cd hekaton-pocket && pip install -e '.[test]' && pytest && hekaton train run.toml

  --into FOLDER      where; by default hekaton-NAME
  --licence LICENCE  BSD-3-Clause (the default), MIT or none
  --author AUTHOR    who has the copyright

KIND is one of"""


def run(arguments: list[str]) -> int:
    """Run ``hekaton new ARGUMENTS``."""
    if not arguments or set(arguments) & {"-h", "--help"}:
        width = max(map(len, KINDS))
        print(USAGE, *(f"  {name:{width}}  {kind.summary}" for name, kind in KINDS.items()), sep="\n")
        return 0
    texts, words = take_texts(arguments, {"into": "", "licence": "BSD-3-Clause", "author": ""})
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        raise ConfigError(
            f"unknown argument '{unknown[0]}' of hekaton new",
            hint=choices_hint(unknown[0], ["--into", "--licence", "--author"]),
        )
    if texts["licence"] not in LICENCES:
        raise ConfigError(
            f"unknown licence '{texts['licence']}'", hint=choices_hint(texts["licence"], LICENCES)
        )
    found = chosen(words)
    check_free(found)
    folder = as_path(texts["into"]) if texts["into"] else Path(names_of(found)[0])
    written = distribution_files(found, licence=texts["licence"], author=texts["author"])
    write(written, folder)
    print(f"written: {folder}, {len(written)} files\nnext:\n  cd {shlex.quote(str(folder))}")
    print("  pip install -e '.[test]'\n  pytest\n  hekaton train run.toml")
    return 0
