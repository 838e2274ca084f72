"""The files of a new distribution: what pip, git and pytest read, around the modules."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from hekaton import __version__
from hekaton.errors import ConfigError
from hekaton.scaffold.kinds import NAME, Chosen
from hekaton.scaffold.licences import LICENCES, NO_LICENCE
from hekaton.scaffold.render import modules

_HINT = "name another folder with --into"
SMALL_MODEL = "hekaton.testing.small_decoder"
"""The plugin with the model of run files that have none of their own."""


def names_of(found: Sequence[Chosen]) -> tuple[str, str]:
    """The distribution and its package, which are named after the first contribution."""
    name = found[0].name
    return f"hekaton-{name.replace('_', '-')}", f"hekaton_{name}"


def distribution_files(
    found: Sequence[Chosen], *, licence: str = "BSD-3-Clause", author: str = ""
) -> dict[str, str]:
    """Path in the folder -> text, of every file.

    :param found: what it contributes; it is named after the first.
    :param licence: one of ``LICENCES``.
    :param author: who has the copyright; by default the authors of the distribution.
    """
    name = found[0].name
    distribution, package = names_of(found)
    sources = modules(found, package=package, distribution=distribution)
    contents = [f"the {one.kind.name.replace('_', ' ')} {one.name}" for one in found]
    facts = {
        "distribution": distribution, "package": package, "name": name, "licence": licence,
        "summary": f"{_listed(contents)} for hekaton",
    }  # fmt: skip
    texts = {
        "pyproject.toml": _pyproject(facts),
        "README.md": _readme(found, facts),
        "run.toml": run_file(found),
        ".gitignore": "__pycache__/\n.venv/\ndist/\noutputs/\n",
        ".github/workflows/test.yml": _TEST_WORKFLOW,
        ".github/workflows/publish.yml": _PUBLISH_WORKFLOW,
        **{f"src/{package}/{module}.py": source for module, source in sources.items()},
        f"src/{package}/py.typed": "",
        f"tests/test_{name}.py": _tests(facts),
    }
    if licence != NO_LICENCE:
        year = datetime.date.today().year
        texts["LICENSE"] = LICENCES[licence].format(
            year=year, author=author or f"The authors of {distribution}"
        )
    return texts


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Write files into a folder that is not there yet, or empty.

    :raises ConfigError: for a folder with something in it, and for one that cannot be written to, which is
        then left as it was.
    """
    try:
        there = os.path.lexists(folder)
        if there and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"'{folder}' is there already", hint=_HINT)
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            for name, text in texts.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        except BaseException:
            for path in [folder / name.partition("/")[0] for name in texts] if there else missing[-1:]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise ConfigError(f"'{folder}' cannot be written: {e.strerror or e}", hint=_HINT) from e


def run_file(found: Sequence[Chosen]) -> str:
    """A run that uses everything, on whatever device there is."""
    kinds = {one.kind.name for one in found}
    content: dict[str, dict[str, Any]] = {}
    if "model" not in kinds:
        content["plugins"] = {"load": [SMALL_MODEL]}
    content["model"] = {"name": "small_decoder", "flavor": "tiny", "tokenizer": "byte"}
    content["training"] = {
        "dataset": "python_stdlib", "seq_len": 128, "local_batch_size": 8, "steps": 30,
        "mixed_precision_param": "float32",
    }  # fmt: skip
    content["optimizer"] = {"lr": 1e-2}
    content["lr_scheduler"] = {"warmup_steps": 2}
    content["metrics"] = {"log_freq": 5}
    for one in found:
        for section, values in one.kind.run.items():
            content.setdefault(section, {}).update(
                {key: _named(value, one.name) for key, value in values.items()}
            )
        if one.kind.section:
            content[one.name] = dict(one.kind.section)
    text = re.sub(r"\[\n +(.*),\n\]", r"[\1]", tomli_w.dumps(content))  # a list of one name on one line
    return "".join(f"# {comment}\n" for comment in _comments(kinds)) + text


def _comments(kinds: Collection[str]) -> list[str]:
    """What a run on one process leaves out."""
    tried = {
        "parallel_style": "[parallelism.plan] gives the style to modules, with tensor_parallel_degree = 2",
        "context_strategy": "[parallelism] context_parallel_strategy names the strategy, with "
        "context_parallel_degree = 2",
        "dispatcher": "[parallelism] expert_dispatcher names the dispatcher, with expert_parallel_degree = 2 "
        "and a model of experts",
    }
    on_two = [text for kind, text in tried.items() if kind in kinds]
    return [f"on two processes: {text}" for text in on_two]


def _named(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_named(one, name) for one in value]
    return name if value == NAME else value


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _pyproject(facts: Mapping[str, str]) -> str:
    series = ".".join(__version__.split(".")[:2])
    upper = f"{series.split('.')[0]}.{int(series.split('.')[1]) + 1}"
    licence = "" if facts["licence"] == NO_LICENCE else f"license = {json.dumps(facts['licence'])}\n"
    return f"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{facts["distribution"]}"
version = "0.1.0"
description = {json.dumps(facts["summary"][0].upper() + facts["summary"][1:])}
readme = "README.md"
{licence}requires-python = ">=3.11"
dependencies = ["hekaton>={series},<{upper}"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.hekaton]
{facts["name"]} = "{facts["package"]}"

[tool.hatch.build.targets.wheel]
packages = ["src/{facts["package"]}"]

[tool.ruff]
line-length = 110
target-version = "py311"

[tool.ruff.lint]
select = ["E", "F", "W", "I", "UP", "B"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""


def _readme(found: Sequence[Chosen], facts: Mapping[str, str]) -> str:
    rows = "\n".join(
        f"| {one.kind.name.replace('_', ' ')} | `{one.name}` | {one.kind.summary} |" for one in found
    )
    return f"""\
# {facts["distribution"]}

A plugin of [hekaton](https://pypi.org/project/hekaton).

| kind | name | summary |
| --- | --- | --- |
{rows}

```bash
pip install {facts["distribution"]}
hekaton plugins {facts["name"]}
```

The second line prints what a run file says to use it. To work on it, from a copy of the sources:

```bash
pip install -e '.[test]'
pytest
hekaton train run.toml
```
"""


def _tests(facts: Mapping[str, str]) -> str:
    return f'''\
"""What {facts["distribution"]} contributes keeps its contracts, and its run file trains."""

from pathlib import Path

from hekaton.testing import run_command

RUN = Path(__file__).resolve().parents[1] / "run.toml"


def test_conforms(hekaton_conformance):
    """Every promise of every contribution, a test each."""
    hekaton_conformance("{facts["distribution"]}", RUN)


def test_the_run_file_trains(tmp_path):
    done = run_command("train", str(RUN), "--training.steps", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step      5  loss" in done.stderr
'''


_TEST_WORKFLOW = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    strategy:
      matrix:
        python: ["3.11", "3.13"]
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: ${{ matrix.python }}
      - run: pip install torch --index-url https://download.pytorch.org/whl/cpu
      - run: pip install -e '.[test]' ruff
      - run: ruff check . && ruff format --check .
      - run: pytest
"""

_PUBLISH_WORKFLOW = """\
# Publishes a release on PyPI, by a trusted publisher: https://docs.pypi.org/trusted-publishers
name: publish
on:
  release:
    types: [published]
jobs:
  publish:
    runs-on: ubuntu-latest
    environment: pypi
    permissions:
      id-token: write
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.13"
      - run: pip install build && python -m build
      - uses: pypa/gh-action-pypi-publish@release/v1
"""
