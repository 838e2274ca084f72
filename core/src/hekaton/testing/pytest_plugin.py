"""The kit as a plugin of pytest: the fixture ``hekaton_conformance``.

    def test_conforms(hekaton_conformance):
        hekaton_conformance("my-distribution", "run.toml")

is a test for each promise of each contribution of the distribution. pytest imports this module in every run
where hekaton is installed: it imports nothing heavy, and nothing of hekaton until a test has the fixture.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hekaton.testing.conformance import Case

FIXTURE = "hekaton_conformance"


class _Asked:
    """Stands for the fixture while tests are collected, and keeps what it is called with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cases: list[Case] = []

    def __call__(
        self,
        distribution: str | os.PathLike[str],
        *arguments: str | os.PathLike[str],
        only: Sequence[str] = (),
        processes: int | None = None,
        without: Mapping[str, str] | None = None,
        tolerance: float | Mapping[str, float] | None = None,
    ) -> None:
        from hekaton.testing.conformance import cases_of

        words = [self._found(os.fspath(argument)) for argument in arguments]
        cases = cases_of(os.fspath(distribution), words, only=only, without=without, tolerance=tolerance)
        self.cases += [case for case in cases if processes in (None, case.promise.processes)]

    def _found(self, argument: str) -> str:
        """A file below pytest's root is found from any folder."""
        below = self.root / argument
        return str(below) if argument.endswith(".toml") and below.is_file() else argument


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case that the function would ask for."""
    if FIXTURE not in metafunc.fixturenames:
        return
    others = [name for name in metafunc.function.__code__.co_varnames if name in metafunc.fixturenames]
    if others not in ([FIXTURE], ["self", FIXTURE]):
        raise pytest.UsageError(
            f"{metafunc.function.__name__} must take {FIXTURE} and no other fixture: it is called while "
            "tests are collected"
        )
    asked = _Asked(metafunc.config.rootpath)
    metafunc.function(*([None] if "self" in others else []), asked)
    metafunc.parametrize(
        FIXTURE, asked.cases, indirect=True, ids=[case.name.replace(": ", ":") for case in asked.cases]
    )


@pytest.fixture
def hekaton_conformance(request: pytest.FixtureRequest) -> Any:
    """``hekaton_conformance(distribution, *arguments, only=[], processes=None, without={}, tolerance=None)``:
    check all that a distribution contributes, a test for each promise.

    ``distribution`` is the name of an installed distribution, of a plugin or of its module. ``arguments`` are
    those of ``hekaton train``: a run that sections and sizes are taken from, of which the kit selects each
    contribution in turn; by default a small one. ``only`` names promises, contributions or cases
    (``["resume", "dataset sums", "model mine: tables"]``). ``processes`` is 1 for the promises that one
    process shows, and 2 for the slower ones of two. ``without`` says what is left out, and why:
    ``{"dataset sums: resume": "reads a network"}``. ``tolerance`` is the relative difference that is allowed
    where numbers are compared, for what rounds: ``{"converter mine": 0.01}``, or a number for all cases.
    """
    case: Case = request.param

    def check(*arguments: object, **others: object) -> None:
        __tracebackhide__ = True
        if case.left_out:
            pytest.skip(case.left_out)
        if check.called:  # type: ignore[attr-defined]
            return
        check.called = True  # type: ignore[attr-defined]
        case.check()

    check.called = False  # type: ignore[attr-defined]
    return check
