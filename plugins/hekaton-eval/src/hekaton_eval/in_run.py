"""``[[evaluation.tasks]]``: a run's model judged between its steps, on the layout that it is trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.evaluator import evaluate

from hekaton.assembly import Assembled
from hekaton.errors import ConfigError
from hekaton.scoring.forward import LayoutForward
from hekaton_eval.backend import ScoringLM
from hekaton_eval.sections import EvaluationSection, TasksEntry
from hekaton_eval.tasks import load_tasks, tasks_are_asked

SEED = 1234
"""Of the examples before a question, as ``lm_eval`` has it by default."""


class TasksInRun:
    """Tasks of the harness, loaded once and asked at the steps that the configuration says."""

    def __init__(self, section: EvaluationSection, assembled: Assembled) -> None:
        config = assembled.config
        self._steps = config.training.steps
        self._entries = section.tasks
        self._tasks = [
            load_tasks(
                one.tasks,
                include=section.include_path,
                num_fewshot=one.num_fewshot,
                trust_code=section.trust_task_code,
            )
            for one in section.tasks
        ]
        _check_each_once(self._tasks)
        assert assembled.tokenizer is not None
        forward = LayoutForward(
            assembled.built, assembled.meshes, assembled.dims, config, device=assembled.process.device
        )
        self._model = ScoringLM(
            forward,
            assembled.tokenizer,
            vocab_size=getattr(assembled.meta.config, "vocab_size", None) or assembled.tokenizer.vocab_size,
            max_length=section.max_length or config.training.seq_len,
            ends=[] if assembled.tokenizer.eos_id is None else [assembled.tokenizer.eos_id],
            batch_size=section.batch_size,
            max_gen_toks=section.max_gen_toks,
            quiet=True,
        )
        self._due: list[int] = []
        for entry, tasks in zip(section.tasks, self._tasks, strict=True):
            self._model.check(tasks["tasks"], chats=entry.apply_chat_template)
            self._ask_once(entry, tasks["tasks"])

    def _ask_once(self, entry: TasksEntry, tasks: Mapping[str, Any]) -> None:
        """Make the questions, of which one that cannot be made would end the run at its first evaluation.

        :raises ConfigError: for a document that lacks what its task names.
        """
        chats = entry.apply_chat_template
        with tasks_are_asked():
            for task in tasks.values():
                task.set_fewshot_seed(seed=SEED)
                task.build_all_requests(
                    limit=entry.limit,
                    rank=0,
                    world_size=1,
                    apply_chat_template=chats,
                    fewshot_as_multiturn=chats,
                    chat_template=self._model.apply_chat_template if chats else None,
                )

    def due(self, step: int) -> bool:
        self._due = [
            number
            for number, entry in enumerate(self._entries)
            if step % entry.every == 0 or step == self._steps
        ]
        return bool(self._due)

    def __call__(self) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for number in self._due:
            metrics |= self._evaluated(self._entries[number], self._tasks[number])
        return metrics

    def _evaluated(self, entry: TasksEntry, tasks: dict[str, Any]) -> dict[str, float]:
        harness = logging.getLogger("lm_eval")
        level = harness.level
        harness.setLevel(logging.WARNING)
        try:
            for task in tasks["tasks"].values():
                task.set_fewshot_seed(seed=SEED)
            with tasks_are_asked():
                found = evaluate(
                    lm=self._model,
                    task_dict=tasks,
                    limit=entry.limit,
                    bootstrap_iters=0,
                    log_samples=False,
                    apply_chat_template=entry.apply_chat_template,
                    fewshot_as_multiturn=entry.apply_chat_template,
                )
        finally:
            harness.setLevel(level)
        return numbers_of(found)


def _check_each_once(entries: Sequence[Mapping[str, Any]]) -> None:
    """:raises ConfigError: for a task of two entries, whose numbers would be logged by one name."""
    asked: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        for name in entry["tasks"]:
            if name in asked:
                raise ConfigError(
                    f"entries {asked[name]} and {number} of [[evaluation.tasks]] both ask '{name}': their "
                    "numbers would have one name",
                    hint="ask it in one entry, or write a task file of another name",
                )
            asked[name] = number


def numbers_of(found: Any) -> dict[str, float]:
    """The numbers of the harness's results: ``TASK/METRIC``, and with a filter ``TASK/METRIC/FILTER``."""
    numbers = {}
    for task, results in found["results"].items():
        for name, value in results.items():
            metric, _, filtered = name.partition(",")
            if not filtered or "stderr" in metric or isinstance(value, bool | str):
                continue
            if isinstance(value, int | float):
                more = "" if filtered == "none" else f"/{filtered}"
                numbers[f"{task}/{metric}{more}"] = float(value)
    return numbers


def build(section: EvaluationSection, assembled: Assembled) -> TasksInRun:
    """:raises ConfigError: for a task that there is not.
    :raises DataError: for a task whose data is not there.
    """
    return TasksInRun(section, assembled)
