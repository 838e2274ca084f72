"""The kinds of contributions that a new distribution can have, and what each is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hekaton.errors import ConfigError, choices_hint

NAME = "NAME"
"""In a run file, the name of the contribution."""
LONGEST = 32
"""Characters of a name: with these the lines of the templates are not too long."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind as the command line has it.

    :param name: the word for it.
    :param token: its name in the templates.
    :param hooks: functions of the plugin module that contribute it.
    :param files: modules of the templates.
    :param run: what a run file says to use it, by section; ``NAME`` stands for its name.
    :param section: values of its own section in a run file; empty where it has none.
    :param needs: kinds without which it cannot be tried; where they are not asked for, they come with it,
        as ``NAME_texts``.
    """

    name: str
    summary: str
    token: str
    hooks: tuple[str, ...]
    files: tuple[str, ...]
    run: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    section: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="model",
            summary="a decoder, with its plan, its initial values and its adapter to Hugging Face",
            token="template_model",
            hooks=("hekaton_models", "hekaton_hf_adapters"),
            files=("model", "hugging_face"),
            run={"model": {"name": NAME, "flavor": "tiny"}},
            section={"hidden_factor": 3},
        ),
        Kind(
            name="dataset",
            summary="texts with random access",
            token="template_dataset",
            hooks=("hekaton_datasets",),
            files=("dataset",),
            run={"training": {"dataset": NAME}},
            section={"largest": 30},
        ),
        Kind(
            name="tokenizer",
            summary="texts to ids and back",
            token="template_tokenizer",
            hooks=("hekaton_tokenizers",),
            files=("tokenizer",),
            run={"model": {"tokenizer": NAME}},
        ),
        Kind(
            name="encoder",
            summary="documents to tokens, with what is learned of them; comes with a dataset",
            token="template_encoder",
            hooks=("hekaton_encoders",),
            files=("encoder",),
            section={"after": "="},
            needs=("dataset",),
        ),
        Kind(
            name="order",
            summary="which document stands where",
            token="template_order",
            hooks=("hekaton_orders",),
            files=("order",),
            run={"training": {"order": NAME}},
        ),
        Kind(
            name="row_maker",
            summary="tokens to the rows of a batch",
            token="template_row_maker",
            hooks=("hekaton_row_makers",),
            files=("row_maker",),
            run={"training": {"packing": NAME}},
        ),
        Kind(
            name="converter",
            summary="changes a model before it is parallelised",
            token="template_converter",
            hooks=("hekaton_converters",),
            files=("converter",),
            run={"model": {"converters": [NAME]}},
            section={"cap": 30.0, "module": "output"},
        ),
        Kind(
            name="parallel_style",
            summary="what tensor parallel does to a module",
            token="template_style",
            hooks=("hekaton_parallel_styles",),
            files=("style",),
        ),
        Kind(
            name="context_strategy",
            summary="attention over a sequence that is cut",
            token="template_context",
            hooks=("hekaton_context_parallel",),
            files=("context",),
        ),
        Kind(
            name="dispatcher",
            summary="tokens to experts on other ranks",
            token="template_dispatcher",
            hooks=("hekaton_dispatchers",),
            files=("dispatcher",),
        ),
        Kind(
            name="objective",
            summary="what a model is trained for",
            token="template_objective",
            hooks=("hekaton_objectives",),
            files=("objective",),
            run={"training": {"objective": NAME}},
            section={"first": 2},
        ),
        Kind(
            name="optimizer",
            summary="a torch optimizer",
            token="template_optimizer",
            hooks=("hekaton_optimizers",),
            files=("optimizer",),
            run={"optimizer": {"name": NAME, "lr": 3e-4}},
            section={"momentum": 0.99},
        ),
        Kind(
            name="schedule",
            summary="the learning rate over the steps",
            token="template_schedule",
            hooks=("hekaton_lr_schedules",),
            files=("schedule",),
            run={"lr_scheduler": {"name": NAME}},
        ),
        Kind(
            name="logger",
            summary="where metrics are shown",
            token="template_logger",
            hooks=("hekaton_loggers",),
            files=("logger",),
            run={"metrics": {"loggers": [NAME]}},
            section={"file": "metrics.csv"},
        ),
        Kind(
            name="checkpoint_format",
            summary="a format of hekaton convert",
            token="template_format",
            hooks=("hekaton_checkpoint_formats",),
            files=("weight_format",),
        ),
        Kind(
            name="check",
            summary="a rule that runs are checked by",
            token="template_check",
            hooks=("hekaton_checks",),
            files=("rule",),
            section={"largest_lr": 0.1},
        ),
        Kind(
            name="identity_subject",
            summary="what processes have in common",
            token="template_subject",
            hooks=("hekaton_identity_subjects",),
            files=("subject",),
        ),
        Kind(
            name="evaluation",
            summary="numbers by which a model is judged between steps",
            token="template_evaluation",
            hooks=("hekaton_evaluations",),
            files=("evaluation",),
            section={"every": 10},
        ),
        Kind(
            name="command",
            summary="a verb of hekaton",
            token="template_command",
            hooks=("hekaton_commands",),
            files=("command",),
        ),
        Kind(
            name="run_hooks",
            summary="what follows a run, and can stop it",
            token="template_hooks",
            hooks=(
                "hekaton_run_started",
                "hekaton_step_ended",
                "hekaton_checkpoint_saved",
                "hekaton_run_ended",
            ),
            files=(),
        ),
    )
}

ALIASES = {
    "adapter": "model", "hf_adapter": "model", "style": "parallel_style", "context": "context_strategy",
    "context_parallel": "context_strategy", "lr_schedule": "schedule", "format": "checkpoint_format",
    "rule": "check", "hooks": "run_hooks",
}  # fmt: skip
"""Other words for them; an adapter comes with the model that it is of."""


@dataclass(frozen=True)
class Chosen:
    """A contribution of a new distribution."""

    kind: Kind
    name: str


def chosen(words: Sequence[str]) -> list[Chosen]:
    """``KIND NAME`` pairs as contributions, with those that they need.

    :raises ConfigError: for a kind that is not known, a name that cannot be one, or two that would clash.
    """
    if not words or len(words) % 2:
        raise ConfigError(
            f"hekaton new takes a KIND and a NAME, and is given {' '.join(words) or 'nothing'}",
            hint="hekaton new model pocket dataset sums",
        )
    asked = [Chosen(_kind(kind), _name(name)) for kind, name in zip(words[::2], words[1::2], strict=True)]
    needed = [
        Chosen(KINDS[need], f"{one.name}_texts")
        for one in asked
        for need in one.kind.needs
        if need not in {other.kind.name for other in asked}
    ]
    found = [*asked, *needed]
    kinds = [one.kind.name for one in found]
    for number, one in enumerate(found):
        if one.kind.name in kinds[:number]:
            raise ConfigError(
                f"hekaton new writes one {one.kind.name} at a time",
                hint="write the second one beside the first, and add its record to the hook",
            )
        with_section = [other for other in found[:number] if other.kind.section and other.name == one.name]
        if one.kind.section and with_section:
            raise ConfigError(
                f"the {with_section[0].kind.name} and the {one.kind.name} would both have the section "
                f"[{one.name}]",
                hint="give each a name of its own",
            )
    return found


def _kind(word: str) -> Kind:
    plain = word.replace("-", "_").lower()
    plain = ALIASES.get(plain, plain)
    if plain not in KINDS:
        raise ConfigError(f"unknown kind '{word}' of hekaton new", hint=choices_hint(plain, KINDS))
    return KINDS[plain]


def _name(word: str) -> str:
    from hekaton.config import JobConfig

    if len(word) > LONGEST:
        raise ConfigError(
            f"'{word}' cannot be the name of a contribution: it has {len(word)} characters",
            hint=f"choose one of at most {LONGEST}",
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", word) or word.startswith("template_"):
        near = re.sub(r"[^a-z0-9]+", "_", word.removeprefix("template_").lower()).strip("_")
        meant = f"did you mean '{near}'?\n" if re.match("[a-z]", near) and word.isascii() else ""
        raise ConfigError(
            f"'{word}' cannot be the name of a contribution",
            hint=f"{meant}begin with a letter, and go on with letters, digits and single underscores between "
            "them, all in lower case; template_ is of hekaton's own",
        )
    if word in JobConfig.model_fields:
        raise ConfigError(f"hekaton has a section [{word}] of its own", hint="choose another name")
    return word
