"""The cases of a distribution: each contribution with each promise of its kind."""

from __future__ import annotations

import contextlib
import importlib.metadata
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.utils import canonicalize_name

from hekaton.contributions import Contribution, Dataset, Encoder
from hekaton.errors import HekatonError, PluginError, choices_hint
from hekaton.plugins import PluginInfo, Plugins, kind_name
from hekaton.plugins.discovery import ENTRY_POINT_GROUP
from hekaton.plugins.requirements import unmet
from hekaton.testing.conformance.promises import PROMISES, Promise
from hekaton.testing.conformance.subject import SMALL_MODEL, CheckedContribution


@dataclass(frozen=True)
class Case:
    """One promise of one contribution.

    :param name: the test's id: ``dataset sums: resume``.
    :param left_out: why it is not checked here; empty where it is.
    """

    name: str
    promise: Promise
    subject: CheckedContribution = field(repr=False)
    left_out: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The words by which it is asked for: its name, the contribution, the promise."""
        return self.name, self.name.partition(": ")[0], self.promise.name

    def check(self) -> None:
        """:raises AssertionError: naming the contribution, what is wrong, and the line of the contract."""
        try:
            self.promise.check.load()(self.subject)
        except (Exception, SystemExit) as e:
            # pytest, which rewrites assertions of plugins, adds what was compared.
            said = str(e).partition("\nassert ")[0]
            if isinstance(e, HekatonError):
                said = f"{type(e).__name__}: {said}"
            elif not isinstance(e, AssertionError) or not _is_of_the_kit(e):
                from hekaton.parallel.contract import described

                said = described(e)
            raise AssertionError(
                f"{self.name}: {said}\n\nthe contract ({self.promise.place}):\n  {self.promise.says}"
            ) from e


def _is_of_the_kit(error: AssertionError) -> bool:
    """Whether an assertion is the kit's, and not one in code that it checks."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return Path(last.filename).is_relative_to(Path(__file__).parents[1])


def cases_of(
    distribution: str,
    arguments: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    without: Mapping[str, str] | None = None,
    tolerance: float | Mapping[str, float] | None = None,
) -> list[Case]:
    """Every case of what a distribution contributes.

    :param distribution: its name, or that of a plugin or its module; or the path of a ``.py`` file.
    :param arguments: of ``hekaton train``, a run from which sections and sizes are taken.
    :param only: cases, contributions (``dataset sums``) or promises (``resume``); empty for all.
    :param without: a case, or all of a contribution (``dataset sums``) -> why it is left out.
    :param tolerance: the relative difference of what is compared that is allowed, for all cases or for each
        case or contribution; ``None`` for the kit's.
    :raises PluginError: for a distribution that is not installed or contributes nothing, for a plugin that
        cannot be loaded, for a case to leave out, or to check alone, that does not exist, and for a tolerance
        that is not above 0 and below 1, or of what is not compared.
    """
    without = without or {}
    plugins, infos = _found(distribution)
    cases = [case for info in infos for case in _of_plugin(plugins, info, list(arguments), without)]
    names = {name for case in cases for name in case.names[:2]}
    _check_known(without, names)
    _check_known(only, names | {promise.name for promise in PROMISES})
    chosen = [case for case in cases if not only or set(only) & set(case.names)]
    if tolerance is None:
        return chosen
    of_each = isinstance(tolerance, Mapping)
    allowed = _allowed(tolerance, cases if of_each else chosen)
    return [_with_tolerance(case, allowed) for case in chosen]


def _allowed(tolerance: float | Mapping[str, float], cases: Sequence[Case]) -> Mapping[str, float]:
    """Case or contribution -> its tolerance."""
    compared = sorted({name for case in cases if case.promise.compares for name in case.names[:2]})
    allowed = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(compared or [""], tolerance)
    for name, number in allowed.items():
        if not isinstance(number, int | float) or not 0 < number < 1:
            raise PluginError(f"a tolerance is a relative difference, above 0 and below 1, not {number!r}")
        if name not in compared:
            where = f"'{name}'" if name else "any of these cases"
            hint = choices_hint(name, compared) if compared else "leave it out"
            raise PluginError(f"no numbers are compared in {where}, which takes no tolerance", hint=hint)
    return allowed


def _with_tolerance(case: Case, allowed: Mapping[str, float]) -> Case:
    number = next((allowed[name] for name in case.names[:2] if name in allowed), None)
    return replace(case, subject=replace(case.subject, tolerance=number)) if number is not None else case


def _check_known(asked: Iterable[str], names: Set[str]) -> None:
    for name in asked:
        if name not in names:
            hint = choices_hint(name, names, listed_by="pytest --collect-only")
            raise PluginError(f"there is no case '{name}'", hint=hint)


def _found(distribution: str) -> tuple[Plugins, list[PluginInfo]]:
    plugins = Plugins.discover()
    infos = _named(plugins, distribution)
    if not infos:
        plugins = Plugins.discover(load=[distribution])
        absent = f"ModuleNotFoundError: No module named '{distribution}'"
        infos = [info for info in plugins.infos if info.module == distribution and info.reason != absent]
    if not infos:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
            entries = importlib.metadata.distribution(distribution).entry_points
            groups = ", ".join(sorted(entries.groups)) or "none"
            raise PluginError(
                f"the distribution '{distribution}' is installed, and names no plugin: it has no entry point "
                f"in the group '{ENTRY_POINT_GROUP}'",
                hint=f"its groups are: {groups}; write [project.entry-points.{ENTRY_POINT_GROUP}] in its "
                "pyproject.toml, and install it again",
            )
        known = sorted({info.distribution for info in plugins.infos if info.distribution})
        raise PluginError(
            f"there is no plugin '{distribution}'",
            hint=f"install it (pip install -e .); {choices_hint(distribution, known)}",
        )
    for info in infos:
        if info.status != "ok":
            raise PluginError(f"{info} is {info.status}: {info.reason}")
    return plugins, infos


def _named(plugins: Plugins, name: str) -> list[PluginInfo]:
    canonical = canonicalize_name(name)
    of_distribution = [
        info
        for info in plugins.infos
        if info.distribution and canonicalize_name(info.distribution) == canonical
    ]
    return of_distribution or [info for info in plugins.infos if name in (info.name, info.module)]


def _of_plugin(
    plugins: Plugins, info: PluginInfo, arguments: list[str], without: Mapping[str, str]
) -> Iterator[Case]:
    records = plugins.contributions(info)
    if not info.distribution:
        arguments = [*arguments, "--plugins.load", f"{info.module},{SMALL_MODEL}"]
    subjects: list[Contribution | None] = [None, *records]
    for record in subjects:
        title = f"plugin {info.name}" if record is None else f"{kind_name(type(record))} {record.name}"
        subject = CheckedContribution(info.module, record, records, arguments)
        for promise in PROMISES:
            if promise.kind is not (None if record is None else type(record)):
                continue
            if promise.name == "run hooks" and not plugins.lifecycle_hooks(info):
                continue
            name = f"{title}: {promise.name}"
            reason = without.get(name) or without.get(title) or _missing(record, records)
            yield Case(name, promise, subject, reason)


def _missing(record: Contribution | None, records: Sequence[Contribution]) -> str:
    """What a contribution lacks to be checked here."""
    if record is None:
        return ""
    if isinstance(record, Encoder) and not any(
        isinstance(one, Dataset) and one.encoder == record.name for one in records
    ):
        return f"no dataset of the distribution names the encoder '{record.name}'"
    reason = unmet(record.needs)
    return f"{record.name} {reason}" if reason else ""
