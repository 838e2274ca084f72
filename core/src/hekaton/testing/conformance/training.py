"""What holds in runs on several processes: the same numbers everywhere, resumed and in the dry run."""

from __future__ import annotations

import functools

import pytest

from hekaton.contributions import Model
from hekaton.errors import HekatonError
from hekaton.testing.conformance.judging import selected
from hekaton.testing.conformance.runs import Measured, measure
from hekaton.testing.conformance.subject import CheckedContribution, loaded
from hekaton.testing.distributed import NamedLayout
from hekaton.testing.model_layouts import PLAIN, claimed

TOLERANCE = 1e-9
NEAR = 1e-5
"""Of what evaluations give, which may compute in float32."""


def layouts(subject: CheckedContribution) -> None:
    measured = _measured(subject)
    expected = measured.steps[""]
    for layout, numbers in measured.steps.items():
        _compare(subject, numbers, expected, f"under {layout}" if layout else "on one process")


def resume(subject: CheckedContribution) -> None:
    measured = _measured(subject)
    for (source, target), numbers in measured.resumed.items():
        where = f"saved under {source}, resumed under {target}"
        _compare(subject, numbers, measured.steps[""][1:], where, first=2)


def dry_run(subject: CheckedContribution) -> None:
    measured = _measured(subject)
    for layout, shapes in measured.shapes.items():
        if layout:
            played = measured.played[layout]
            for name in sorted({*shapes, *played}):
                assert shapes.get(name) == played.get(name), (
                    f"under {layout}, '{name}' has the shape {played.get(name)} in the dry run, and "
                    f"{shapes.get(name)} in a run"
                )


def attention(subject: CheckedContribution) -> None:
    measured = _measured(subject, "cp2")
    _compare(subject, measured.steps["cp2"], measured.steps[""], "under cp2")


def numbers(subject: CheckedContribution) -> None:
    found = _measured(subject).judged
    if not found[""]:
        pytest.skip("it is due at no step: give hekaton_conformance a run file that sets its section")
    (expected,) = found[""]
    near = subject.tolerance or NEAR
    for layout, ranks in found.items():
        for rank, given in enumerate(ranks):
            where = f"rank {rank} under {layout}" if layout else "one process"
            assert given.keys() == expected.keys(), f"{where} gives {sorted(given)}, not {sorted(expected)}"
            for name, number in given.items():
                its = expected[name]
                same = abs(number - its) <= near * abs(its) or repr(number) == repr(its)
                assert same, f"{where} gives '{name}' as {number}, one process as {its}"


def _measured(subject: CheckedContribution, *layouts: str) -> Measured:
    """What the promises of its kind compare; the layouts are those that are claimed, where none is given."""
    from hekaton.testing.conformance.promises import PROMISES

    promised = [one.name for one in PROMISES if isinstance(subject.record, one.kind or ())]
    found = _run(
        tuple(subject.run), layouts or claimed_layouts(subject), selected(subject), "resume" in promised,
        "dry run" in promised,
    )  # fmt: skip
    if isinstance(found, Measured):
        return found
    shared = [name for name in promised if name in ("layouts", "resume", "dry run")]
    whose = f"a run that the promises {', '.join(shared)} share: " if len(shared) > 1 else ""
    raise AssertionError(f"{whose}{found}")


def claimed_layouts(subject: CheckedContribution) -> tuple[str, ...]:
    """Of two processes: every one that the plan of a model claims, for other kinds FSDP and one more; without
    those that a rule refuses."""
    spec = subject.spec_of_run
    plan = spec.plan(spec.flavors[subject.flavor])
    found = [layout for layout in claimed(plan) if _is_allowed(subject, layout)]
    assert PLAIN in found, f"{PLAIN} is refused"
    if isinstance(subject.record, Model):
        return tuple(found)
    return tuple(found[:2])


def _is_allowed(subject: CheckedContribution, layout: str) -> bool:
    from hekaton.rules import check

    named = NamedLayout(layout)
    try:
        check(loaded([*subject.run, *named.flags]), world_size=named.processes, device_type="cpu", here=False)
    except HekatonError:
        if layout == PLAIN:
            raise
        return False
    return True


@functools.lru_cache(maxsize=8)
def _run(
    arguments: tuple[str, ...], layouts: tuple[str, ...], evaluation: str, resume: bool, dry_run: bool
) -> Measured | str:
    """One launch for all promises of a contribution, or what was wrong with it."""
    try:
        return measure(
            arguments, layouts, timeout=100.0 * (1 + len(layouts)), evaluation=evaluation, resume=resume,
            dry_run=dry_run,
        )  # fmt: skip
    except AssertionError as e:
        return str(e)


def _compare(
    subject: CheckedContribution,
    numbers: list[tuple[float, float]],
    expected: list[tuple[float, float]],
    where: str,
    *,
    first: int = 1,
) -> None:
    tolerance = subject.tolerance or TOLERANCE
    for step, (ours, theirs) in enumerate(zip(numbers, expected, strict=True), start=first):
        for what, number, its in zip(("loss", "gradient norm"), ours, theirs, strict=True):
            assert abs(number - its) <= tolerance * abs(its), (
                f"{where}: the {what} of step {step} is {number}, on one process {its}, which differ by "
                f"{abs(number - its) / abs(its or 1):.2g} of it; the tolerance is {tolerance:g}"
            )
