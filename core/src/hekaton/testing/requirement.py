"""Does a plugin whose requirement is not met say so, to those alone who want what it is needed for?"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement


def check_requirement(
    requirement: str, *, too_old: str | None, without: Sequence[str], using: Sequence[str]
) -> None:
    """Check what is said where a package that contributions need is missing, or of another version.

    ``hekaton plugins`` lists them as unavailable with the reason, a run that names none of them is accepted,
    and one that names them is refused with the reason.

    :param requirement: as their records have it in ``needs``, for example ``torchao>=0.18``.
    :param too_old: a version that is not enough; ``None`` where any is.
    :param without: arguments of ``hekaton config check`` that name none of the contributions.
    :param using: arguments that name one.
    :raises AssertionError: with what was printed instead.
    """
    package = Requirement(requirement).name
    states: dict[str | None, str] = {None: "which is not installed"}
    if too_old is not None:
        states[too_old] = f"and {too_old} is installed"
    for version, state in states.items():
        reason = f"needs {requirement}, {state}"
        with _installed(package, version):
            for arguments, status, said in (
                (["config", "check", *without], 0, ""),
                (["config", "check", *using], 2, reason),
                (["plugins"], 0, f"unavailable: {reason}"),
            ):
                found, printed = _run(arguments)
                assert found == status, f"hekaton {' '.join(arguments)}: status {found}\n{printed}"
                assert said in printed, f"hekaton {' '.join(arguments)} does not say '{said}':\n{printed}"


@contextlib.contextmanager
def _installed(package: str, version: str | None) -> Iterator[None]:
    real = importlib.metadata.version

    def found(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    importlib.metadata.version = found  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.metadata.version = real


def _run(arguments: Sequence[str]) -> tuple[int, str]:
    from hekaton.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return main(list(arguments)), output.getvalue()
