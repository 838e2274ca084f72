"""What a run must have for its evaluations; every run imports this, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hekaton.errors import HekatonError
from hekaton.plugins.requirements import unmet
from hekaton_eval import NEEDS

if TYPE_CHECKING:
    from hekaton.rules import Run


def tasks_can_be_asked(run: Run) -> Iterator[HekatonError | str]:
    """The harness is there, and so are the task files that entries name."""
    section = run.config.section("evaluation")
    if section == type(section)():
        return
    entries = getattr(section, "tasks", [])
    if not entries:
        yield "[evaluation] has no effect: there is no [[evaluation.tasks]]"
        return
    if reason := unmet(NEEDS):
        yield run.violation(
            f"[[evaluation.tasks]] {reason}", "evaluation.tasks", hint="pip install 'hekaton-eval[harness]'"
        )
    pipeline, seq_len = run.config.parallelism.pipeline_parallel_degree, run.config.training.seq_len
    longest = getattr(section, "max_length", None)
    if pipeline > 1 and longest is not None and longest > seq_len:
        yield run.violation(
            f"evaluation.max_length = {longest} is above training.seq_len = {seq_len}, the length of texts "
            "under a pipeline, whose stages exchange tensors of one shape",
            "evaluation.max_length",
        )
    for number, entry in enumerate(entries, 1):
        if not entry.tasks:
            yield run.violation(f"entry {number} of [[evaluation.tasks]] names no tasks", "evaluation.tasks")
        for name in entry.tasks if run.here else ():
            if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
                yield run.violation(
                    f"entry {number} of [[evaluation.tasks]]: there is no task file '{name}'",
                    "evaluation.tasks",
                )
