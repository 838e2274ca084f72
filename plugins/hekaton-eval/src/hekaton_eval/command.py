"""``hekaton eval``: a model judged by tasks of the lm-evaluation-harness."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.cli import plugin_flags, trained_model
from hekaton.cli.arguments import MOST_SEED, VerbParser, as_path, check_numbers
from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from hekaton.plugins import Plugins

USAGE = f"""\
usage: hekaton eval --checkpoint PATH --tasks NAME,NAME [options]
       hekaton eval --hf PATH --tasks NAME,NAME [options]

Judge a model by tasks of EleutherAI's lm-evaluation-harness, and print its results as a table.

{trained_model.SOURCES}
  --tasks NAMES             names of tasks and groups of the harness, or YAML files, with commas between
  --include_path FOLDER     a folder with more tasks; may be given several times
  --trust_task_code         run the Python functions and metrics that task files of yours name
  --num_fewshot N           examples before each question; by default as the task says
  --limit N                 questions of each task, from its beginning
  --batch_size N            texts that a process computes at once; by default auto: chosen by their length
  --apply_chat_template     ask in the form of a conversation, by the tokenizer's chat template
  --system_instruction TEXT of such a conversation
  --gen_kwargs ARGUMENTS    of tasks that generate: max_gen_toks=64,temperature=0.7,do_sample=true
  --max_length N            tokens of the longest text; by default the positions of the model
  --add_bos_token BOOL      begin texts with it: true or false; by default as the tokenizer is published
  --seed N                  of examples before questions, and of tokens that are drawn; 1234 by default
  --out FOLDER              write the results there, in the harness's format
  --log_samples             with every question and answer

{trained_model.OPTIONS}

Under torchrun every process has a copy of the model, and texts are shared out among them. Where it is too
large for one, it is cut: --parallelism.data_parallel_shard_degree N, tensor_parallel_degree,
expert_parallel_degree and expert_tensor_parallel_degree, as in a run. The results are the same on every
layout."""

_LIMITS = {
    "num_fewshot": (0, 2**16), "limit": (1, 2**31), "max_length": (2, 2**31), "seed": (0, MOST_SEED),
}  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run ``hekaton eval ARGUMENTS``."""
    flags, words = plugin_flags(arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(USAGE)
        return 0
    given, parallelism = _parsed(words)
    from hekaton.launchers import adopt_launcher

    adopt_launcher()
    plugins = flags.discover()
    plugins.check()

    from hekaton.environment import launched
    from hekaton.failures.early import told_to_the_others
    from hekaton.metrics import set_up_logging
    from hekaton_eval.backend import batch_rows
    from hekaton_eval.generation import given as given_arguments
    from hekaton_eval.tasks import load_tasks

    place = launched()
    set_up_logging(place.rank, place.world_size)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    with told_to_the_others():
        batch_size = batch_rows(given.batch_size)
        if given.out is not None:
            _check_writable(given.out)
        tasks = load_tasks(
            given.tasks,
            include=given.include_path,
            num_fewshot=given.num_fewshot,
            trust_code=given.trust_task_code,
            generation=None if given.gen_kwargs is None else given_arguments(given.gen_kwargs),
        )
    results = _evaluated(given, parallelism, plugins, tasks, batch_size)
    if results is not None:
        _shown(results, given)
    return 0


def _parsed(words: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = VerbParser("eval")
    trained_model.add_arguments(parser)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--include_path", action="append", default=[])
    for name, kind, default in (
        ("num_fewshot", int, None), ("limit", int, None), ("batch_size", str, "auto"),
        ("system_instruction", str, None), ("gen_kwargs", str, None), ("max_length", int, None),
        ("seed", int, 1234), ("out", str, None),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--add_bos_token", choices=["true", "false"])
    for name in ("apply_chat_template", "log_samples", "trust_task_code"):
        parser.add_argument(f"--{name}", action="store_true")
    parallelism, others = _degrees(words)
    given, unknown = parser.parse_known_args(others)
    for word in unknown:
        options = re.findall(r"--\w+", parser.format_usage())
        hint = choices_hint(word.partition("=")[0], options) if word.startswith("-") else ""
        raise ConfigError(f"hekaton eval: unknown argument '{word}'", hint=hint)
    check_numbers(given, _LIMITS)
    if given.log_samples and given.out is None:
        raise ConfigError("--log_samples has no effect without --out FOLDER")
    given.tasks = [name for name in given.tasks.split(",") if name]
    if given.out is not None:
        given.out = str(as_path(given.out))
    return given, parallelism


def _degrees(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take ``--parallelism.NAME VALUE`` out of the arguments."""
    found: dict[str, Any] = {}
    others: list[str] = []
    rest: Iterator[str] = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--parallelism."):
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        name = flag.removeprefix("--parallelism.")
        if value == "":
            raise ConfigError(f"{flag} needs a value")
        if name in found:
            raise ConfigError(f"{flag} is given more than once", hint="give it once")
        number = value.removeprefix("-").isdecimal()
        found[name] = int(value) if number else {"true": True, "false": False}.get(value, value)
    return found, others


def _evaluated(
    given: argparse.Namespace,
    parallelism: dict[str, Any],
    plugins: Plugins,
    tasks: dict[str, Any],
    batch_size: int | None,
) -> Any:
    """The harness's results, on the first process of each machine; ``None`` on the others."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from hekaton.memory import out_of_memory_is_said
    from hekaton_eval.backend import ScoringLM, of_model
    from hekaton_eval.opened import opened
    from hekaton_eval.tasks import no_git_without_a_repository, tasks_are_asked

    how = "choose a smaller --batch_size, or cut the model among processes"
    with (
        out_of_memory_is_said("evaluating", hint=how),
        opened(plugins, parallelism=parallelism, **trained_model.said(given)) as (loaded, forward),
    ):
        logging.getLogger("hekaton").info("%s: %s", loaded.source, loaded)
        bos = None if given.add_bos_token is None else given.add_bos_token == "true"
        model = ScoringLM(
            forward,
            loaded.tokenizer,
            batch_size=batch_size,
            add_bos_token=bos,
            seed=given.seed,
            quiet=not sys.stderr.isatty(),
            **of_model(loaded, max_length=given.max_length),
        )
        model.check(tasks["tasks"], chats=given.apply_chat_template)
        with tasks_are_asked(), no_git_without_a_repository():
            results: Any = simple_evaluate(
                model=model,
                tasks=list(tasks["tasks"].values()) if not tasks["groups"] else _top(tasks),
                limit=given.limit,
                log_samples=given.log_samples,
                apply_chat_template=given.apply_chat_template,
                fewshot_as_multiturn=given.apply_chat_template,
                system_instruction=given.system_instruction,
                fewshot_random_seed=given.seed,
                # The tasks are loaded; else all YAML is read again.
                task_manager=TaskManager(include_defaults=False),
            )
    if results is not None:
        results["config"] |= {
            "model": "hekaton",
            "model_args": {"checkpoint": given.checkpoint or given.hf, "parallelism": parallelism},
            "model_source": loaded.source,
            "batch_size": batch_size or "auto",
            "gen_kwargs": given.gen_kwargs,
            "device": str(forward.device),
        }
    return results


def _check_writable(folder: str) -> None:
    """:raises ConfigError: where no results can be written; the harness would say so in its log alone."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to '{folder}': {error.strerror or error}", hint="say another --out"
        ) from error


def _top(tasks: dict[str, Any]) -> list[Any]:
    """Groups, and the tasks that are in none."""
    inside = {name for children in tasks["group_map"].values() for name in children}
    every = {**tasks["groups"], **tasks["tasks"]}
    return [one for name, one in every.items() if name not in inside]


def _shown(results: Any, given: argparse.Namespace) -> None:
    from lm_eval.utils import make_table

    samples = results.pop("samples", None)
    if given.out is not None:
        from lm_eval.loggers import EvaluationTracker

        tracker = EvaluationTracker(output_path=given.out)
        tracker.general_config_tracker.model_name = "hekaton"
        tracker.general_config_tracker.model_name_sanitized = "hekaton"
        tracker.save_results_aggregated(results=results, samples=samples)
        for name in results["configs"] if samples is not None else ():
            tracker.save_results_samples(task_name=name, samples=samples[name])
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
