"""What a contribution needs beside its own distribution, and whether it is there."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement


def malformed(needs: object) -> str:
    """What is wrong with the requirements of a record, as the end of a sentence; empty for none."""
    if not isinstance(needs, tuple | list):
        return f"are {type(needs).__name__}, not a tuple of requirements"
    for text in needs:
        try:
            Requirement(text)
        except (InvalidRequirement, TypeError):
            return f"have {text!r}, which is no requirement"
    return ""


def unmet(needs: Iterable[str]) -> str:
    """The first requirement that is not met, in words; empty if all are.

    :param needs: as pip takes them: ``"torchao>=0.18"``.
    """
    for text in needs:
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return f"needs {text}, which is not installed"
        if not requirement.specifier.contains(version, prereleases=True):
            return f"needs {text}, and {version} is installed"
    return ""
