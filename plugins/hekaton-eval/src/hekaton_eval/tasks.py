"""Tasks of the harness by name or by file, loaded with their data before a model computes anything."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import socket
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from hekaton.errors import ConfigError, DataError, HekatonError
from hekaton_eval.generation import check_in_effect, wanted
from hekaton_eval.task_code import read_as_data
from hekaton_eval.task_files import ENDINGS, add_group, content, is_group, is_local, named
from hekaton_eval.task_templates import check_templates, error_of_template

log = logging.getLogger("hekaton")

SECONDS = 3.0
"""To reach the Hub before it counts as out of reach: its own client tries for minutes."""


def load_tasks(
    names: Sequence[str],
    *,
    include: Sequence[str] = (),
    num_fewshot: int | None = None,
    trust_code: bool = False,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load tasks, as :func:`lm_eval.evaluator.evaluate` takes them.

    :param names: names of tasks, groups and tags, also with ``*``; or YAML files, whose data files may be
        beside them.
    :param include: folders with more tasks.
    :param num_fewshot: examples before each question, of tasks that do not fix it at 0.
    :param trust_code: run Python functions and programs that task files name.
    :param generation: counts more than the ``generation_kwargs`` of tasks that generate text.
    :raises ConfigError: for a name that there is not, with the nearest; a file that is no task, or that names
        code; more examples than there are; and arguments of generation that have no effect.
    :raises DataError: for data that is neither here nor can be had.
    """
    if not names:
        raise ConfigError("no task is named", hint="say --tasks NAME,NAME")
    files = [name for name in names if name.endswith(ENDINGS)]
    for folder in include:
        if not Path(folder).is_dir():
            raise ConfigError(f"there is no folder '{folder}' with tasks")
    with _errors_said(", ".join(files)):
        read = [content(Path(one)) for one in files]
    folders = [str(Path(one).resolve()) for one in include] or None
    manager = TaskManager(include_path=folders, include_defaults=len(files) < len(names))
    if any(name not in manager.task_index for one in read for name in named(one)):
        manager = TaskManager(include_path=folders)
    specs = [one for name in names if not name.endswith(ENDINGS) for one in _named(name, manager)]
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    sources: dict[str, str] = {}
    asks_hub = bool(specs) or not all(map(is_local, read))
    with read_as_data(trusted=trust_code), _unreachable_at_once() if asks_hub else contextlib.nullcontext():
        for spec in dict.fromkeys([*specs, *files]):
            for kind, found in _load(spec, manager).items():
                if kind == "tasks":
                    _check_names(found, loaded["tasks"], spec, sources)
                loaded[kind].update(found)
    if not loaded["tasks"]:
        raise ConfigError(f"there is no task in '{', '.join(names)}'", hint="a group names its tasks")
    without: list[str] = []
    for name, task in loaded["tasks"].items():
        if generation and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(generation), update=True)
        _check_asked(name, task)
        check_templates(name, task)
        fixed = task.get_config("num_fewshot")
        if num_fewshot is not None and fixed != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
        elif num_fewshot:
            without.append(name)
        _check_examples(name, task)
    if len(without) == len(loaded["tasks"]):
        raise ConfigError(
            f"num_fewshot = {num_fewshot} has no effect: the tasks fix it at 0", hint="leave it out"
        )
    if without:
        log.info("notice: %s fix num_fewshot at 0 and show no examples", ", ".join(without))
    if generation:
        check_in_effect(generation, loaded["tasks"])
    return loaded


def _check_names(
    found: Mapping[str, Any], before: Mapping[str, Any], spec: str, sources: dict[str, str]
) -> None:
    """:param sources: where each task was found, to which these are added.
    :raises ConfigError: for a file whose task has the name of another one: its results would replace them.
    """
    for name in found:
        if name in before and spec.endswith(ENDINGS):
            raise ConfigError(
                f"'{sources[name]}' and '{spec}' both have a task '{name}'", hint="give one another name"
            )
        sources.setdefault(name, spec)


def _check_asked(name: str, task: Any) -> None:
    """:raises ConfigError: for a task that nothing can be asked by, or that measures nothing."""
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task '{name}' shows images or sounds: it cannot be asked of a model of text")
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"task '{name}' runs the programs that the model writes",
            hint="on a machine made for that: python -m hekaton_eval --confirm_run_unsafe_code",
        )
    if task.get_config("output_type") == "generate_until":
        try:
            wanted(task.get_config("generation_kwargs") or {}, most=1)
        except ConfigError as error:
            raise ConfigError(f"task '{name}': {error.message}", hint=error.hint) from error
    if task.get_config("metric_list") == []:
        raise ConfigError(f"task '{name}' has an empty metric_list: nothing would come of it")


def _check_examples(name: str, task: Any) -> None:
    """:raises ConfigError: for more examples before a question than the task has, itself left out."""
    shown = task.get_config("num_fewshot") or 0
    sampler = getattr(task, "sampler", None)
    if not shown or (sampler is None and not hasattr(task, "fewshot_cfg")):
        return  # a task that is a Python class of its own asks as it likes
    documents = len(sampler.df) if sampler is not None else 0
    others = documents - 1 if task.fewshot_cfg.split == task.config.test_split else documents
    if shown > others:
        raise ConfigError(
            f"task '{name}' is to show {shown} examples before each question, and has {max(others, 0)}",
            hint="num_fewshot says how many",
        )


def _named(name: str, manager: TaskManager) -> list[str]:
    found = manager.match_tasks([name])
    if not found:
        near = difflib.get_close_matches(name, manager.all_tasks, n=5)
        meant = f"did you mean {', '.join(near)}?\n" if near else ""
        raise ConfigError(
            f"unknown task '{name}'",
            hint=f"{meant}lm_eval ls tasks lists all; a task of your own is named by its YAML file",
        )
    return list(found)


def _load(spec: str, manager: TaskManager) -> dict[str, Any]:
    """:raises HekatonError: for what the harness and its libraries say in many ways."""
    if not spec.endswith(ENDINGS):
        return _built(spec, spec, manager)
    file = Path(spec)
    try:
        with contextlib.chdir(file.resolve().parent):
            return _built(file.name, spec, manager)
    except DataError:
        # Data files may be named from where the program was started, as lm_eval has it.
        return _built(str(file.resolve()), spec, manager)


def _built(spec: str, name: str, manager: TaskManager) -> dict[str, Any]:
    with _errors_said(name):
        if spec.endswith(ENDINGS) and is_group(config := content(Path(spec))):
            spec = add_group(config, Path(spec), manager)
        return dict(manager.load([spec]))


@contextlib.contextmanager
def _errors_said(name: str) -> Iterator[None]:
    """:raises HekatonError: for what the harness, its libraries and a task's own code raise."""
    try:
        yield
    except HekatonError:
        raise
    except StopIteration as error:
        raise DataError(f"the data of task '{name}' has no question: a file of it is empty") from error
    except KeyError as error:
        raise ConfigError(
            f"task '{name}' cannot be loaded: its data has no split or column {error}"
        ) from error
    except Exception as error:  # of yaml, jinja2, datasets, huggingface_hub, requests, the task's own code
        if (of_template := error_of_template(error)) is not None:
            raise of_template from error
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        said = first_line(cause or error)
        if (
            (isinstance(error, OSError) and not _is_of_yaml(error))
            or "offline" in said.lower()
            or "DatasetNotFound" in type(error).__name__
        ):
            raise DataError(
                f"the data of task '{name}' is not on this machine and cannot be had: {said}",
                hint="download it where there is a network (HF_HOME says where to), or correct data_files",
            ) from error
        raise ConfigError(f"task '{name}' cannot be loaded: {type(error).__name__}: {said}") from error


@contextlib.contextmanager
def tasks_are_asked() -> Iterator[None]:
    """While the harness makes questions of documents, and numbers of answers.

    :raises ConfigError: for what it, or a task's own code, raises; errors of the model stay as they are.
    """
    try:
        yield
    except HekatonError:
        raise
    except Exception as error:
        where = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
        if "hekaton_eval.backend" in where:
            raise
        if (of_template := error_of_template(error)) is not None:
            raise of_template from error
        raise ConfigError(
            f"tasks cannot be asked, or their answers judged: {type(error).__name__}: {first_line(error)}",
            hint="a document of a task may lack what its file names",
        ) from error


@contextlib.contextmanager
def no_git_without_a_repository() -> Iterator[None]:
    """The harness asks git for the commit of the current folder, for its results. Outside of a repository it
    finds none, and git would say on the console that this is fatal."""
    here = Path.cwd()
    if "GIT_DIR" in os.environ or any((folder / ".git").exists() for folder in (here, *here.parents)):
        yield
        return
    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "the harness says no more"


def _is_of_yaml(error: OSError) -> bool:
    """Whether a file that a task includes is not there, not one of its data."""
    return str(error.filename or "").endswith(ENDINGS)


@contextlib.contextmanager
def _unreachable_at_once() -> Iterator[None]:
    """Where the Hub cannot be reached, only what is on this machine is looked for."""
    import datasets.config
    import huggingface_hub.constants as hub

    if datasets.config.HF_HUB_OFFLINE or _is_reachable(hub.ENDPOINT):
        yield
        return
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = False


def _is_reachable(endpoint: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # a proxy answers for it, or its error is its own
    place = urlsplit(endpoint)
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), timeout=SECONDS):
            return True
    except OSError:
        return False
