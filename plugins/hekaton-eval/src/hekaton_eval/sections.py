"""The configuration section of this plugin."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from hekaton.config import AtResume, SectionModel
from hekaton.config.base import AtResumeMeaning, PathField, Rows


class TasksEntry(SectionModel):
    """Tasks that a run is evaluated by, at the same steps."""

    tasks: list[str] = []  # noqa: RUF012, pydantic copies it
    """Names of tasks and groups of the harness (``"arc_easy"``), or YAML files of tasks of your own."""

    every: Annotated[int, Field(gt=0)] = 1000
    """Steps between two evaluations; the last step is evaluated as well."""

    limit: Annotated[int, Field(gt=0)] | None = None
    """Questions of each task, from its beginning; all by default."""

    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples before each question; by default as the task says."""

    apply_chat_template: bool = False
    """Ask in the form of a conversation, by the tokenizer's chat template."""


class EvaluationSection(SectionModel):
    """Evaluation by tasks of the lm-evaluation-harness between the steps of a run, on its own layout. Steps,
    weights and random numbers of the training are the same with it as without it."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    tasks: list[TasksEntry] = []  # noqa: RUF012, pydantic copies it
    """Entries ``[[evaluation.tasks]]``: which tasks, and when."""

    batch_size: Annotated[Rows | None, AtResume("nothing")] = None
    """Texts that a process computes at once; by default chosen by their length. Under a pipeline it is
    ``training.local_batch_size``."""

    max_length: Annotated[int, Field(gt=1)] | None = None
    """Tokens of the longest text: longer ones lose their beginning. By default ``training.seq_len``."""

    max_gen_toks: Annotated[int, Field(gt=0)] = 256
    """Tokens that are generated where a task does not say how many."""

    include_path: list[PathField] = []  # noqa: RUF012, pydantic copies it
    """Folders with more tasks."""

    trust_task_code: bool = False
    """Run Python functions (``!function``) and metrics of the Hub that task files of your own name."""
