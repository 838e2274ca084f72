"""Mistakes put into what ``hekaton new`` writes: the kit notices each, and names the thing and the contract."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from hekaton.errors import PluginError
from hekaton.scaffold import chosen, distribution_files, write
from hekaton.testing.conformance import cases_of

SEVERAL = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A text of a module and the wrong one in its place.

    :param named: what the message names beside the contract.
    """

    kind: str
    promise: str
    file: str
    right: str
    wrong: str
    named: str


MISTAKES = {
    name: Mistake(**facts)
    for name, facts in tomllib.loads(Path(__file__).with_name("mistakes.toml").read_text("utf-8")).items()
}
ON_TWO_PROCESSES = (
    "model:gradients",
    "context parallel:attention",
    "dispatcher:tokens",
    "evaluation:numbers",
)


def test_there_are_enough():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=SEVERAL if mistake.promise in ON_TWO_PROCESSES else ())
        for name, mistake in MISTAKES.items()
    ],
)
def test_a_mistake_is_noticed(name, tmp_path, monkeypatch):
    mistake = MISTAKES[name]
    package = f"w{list(MISTAKES).index(name)}"
    texts = distribution_files(chosen([mistake.kind, package]))
    path = f"src/hekaton_{package}/{mistake.file}.py"
    assert texts[path].count(mistake.right) >= 1, "the right text is in the template"
    write(texts | {path: texts[path].replace(mistake.right, mistake.wrong, 1)}, tmp_path / "wrong")
    monkeypatch.syspath_prepend(str(tmp_path / "wrong/src"))
    kind, _, promise = mistake.promise.partition(":")
    with pytest.raises((AssertionError, PluginError)) as error:
        check(tmp_path / "wrong/src" / f"hekaton_{package}", kind, promise)
    assert mistake.named in str(error.value), str(error.value)
    assert f"docs/contracts/{kind.replace(' ', '-')}.md#{promise.replace(' ', '-')}" in str(error.value)


def check(package: Path, kind: str, promise: str) -> None:
    """The cases of one promise of one kind, in a package that is not installed."""
    try:
        plugin = f"hekaton_{package.name.removeprefix('hekaton_')}"
        cases = [
            case
            for case in cases_of(
                plugin, [f"--{package.name.removeprefix('hekaton_')}.every", "3"] * (kind == "evaluation")
            )
            if case.name.startswith(f"{kind} ") and case.name.endswith(f": {promise}")
        ]
        assert cases, "there is such a case"
        for case in cases:
            case.check()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
