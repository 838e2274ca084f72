"""The reference of what the processes of a run must have in common, and what a resume compares."""

from __future__ import annotations

from generator.installed import plugins
from generator.markdown import code, table
from hekaton.config.base import (
    AtResumeMeaning,
    CompatSection,
    at_resume,
    dotted,
    is_idle,
    may_differ,
    walk,
)
from hekaton.config.job import config_class
from hekaton.identity.code import COMPUTES_NOTHING
from hekaton.identity.variables import COMPARED, NOT_COMPARED, VARIABLES

INTRODUCTION = """\
# What a run has in common

The processes of a run [compare what they are](../how-to/several-machines.md). Every field of the
configuration must have the same value on all of them, but for these:
"""

VERSIONS = """\
Versions of Python, of torch, of the libraries of NVIDIA and the Triton that torch requires, and of every
distribution that contributes something or is required by one that does, must be the same; those of its extras
where they were imported, and those of others that plugins outside of a distribution or your own code import.
What such code imports from no distribution must have the same source: a file beside a plugin, a folder on
`PYTHONPATH`, an archive. A process that has not imported such a module compares what it would import.
Of these distributions another version is a notice:
"""


ENVIRONMENT = """\
Of a process's environment and its machine these must be the same as well:
"""

FREE = """\
These are not compared:
"""

RESUME = """\
## At a resume

A change of a value since the checkpoint is a notice with both values and the step, unless the value is in
one of these tables. [How to resume](../how-to/resume-and-checkpoints.md#what-may-change) says more.

These mean nothing:
"""

REFUSED = """\
These are refused, until `checkpoint.accept_changes` names them, and so are the fields of a model's
configuration that declare it (`Annotated[float, AtResume("refusal")]`): those with which tensors of the same
shapes are another model.
"""


def page() -> str:
    config, _ = config_class(plugins())
    fields = [
        (dotted(path), may_differ(field, inside), at_resume(field, inside))
        for path, field, inside in walk(config)
        if not is_idle(field) and not any(issubclass(one, CompatSection) for one in inside)
    ]
    free = [[code(name), reason] for name, reason, _ in fields if reason]
    versions = [[code(name), reason] for name, reason in sorted(COMPUTES_NOTHING.items())]
    parts = [
        INTRODUCTION,
        table(["field", "why it may differ"], free),
        VERSIONS,
        table(["distribution", "why"], versions),
        ENVIRONMENT,
        table(
            ["variable or property", "what it changes"],
            [[code(name), reason] for name, reason in VARIABLES.items()]
            + [[name, reason] for name, reason in COMPARED.items()],
        ),
        FREE,
        table(["of a machine", "why"], [[name, reason] for name, reason in NOT_COMPARED.items()]),
        RESUME,
        table(["section", "fields"], _by_section(fields, "nothing")),
        REFUSED,
        table(["section", "fields"], _by_section(fields, "refusal")),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _by_section(fields: list[tuple[str, str, AtResumeMeaning]], meaning: AtResumeMeaning) -> list[list[str]]:
    sections: dict[str, list[str]] = {}
    for name, _, of_field in fields:
        if of_field == meaning:
            section, _, field = name.rpartition(".")
            sections.setdefault(section, []).append(code(field))
    return [[f"`[{section}]`", ", ".join(names)] for section, names in sections.items()]
