"""What template_distribution contributes to hekaton."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hekaton.contributions import (
    Check,
    CheckpointFormat,
    Command,
    ContextParallel,
    Converter,
    Dataset,
    Dispatcher,
    Encoder,
    Evaluation,
    HFAdapter,
    IdentitySubject,
    Logger,
    LRSchedule,
    Model,
    Objective,
    Optimizer,
    Order,
    ParallelStyle,
    Ref,
    RowMaker,
    Section,
    Tokenizer,
    hookimpl,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hekaton.config.job import JobConfig
    from hekaton.control import RunControl
    from hekaton.urls import UrlPath

HEKATON_API = ">=1,<2"  # the versions of the plugin API that this was written for


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "template_model",
            spec=Ref("hekaton.scaffold.templates.model:train_spec"),
            summary="a small decoder",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "template_model",
            table=Ref("hekaton.scaffold.templates.hugging_face:table"),
            write_config=Ref("hekaton.scaffold.templates.hugging_face:write_config"),
            read_config=Ref("hekaton.scaffold.templates.hugging_face:read_config"),
            architectures=("LlamaForCausalLM",),
            summary="weights and config.json as transformers' LlamaForCausalLM",
        )
    ]


@hookimpl
def hekaton_datasets() -> list[Dataset]:
    return [
        Dataset(
            "template_dataset",
            build=Ref("hekaton.scaffold.templates.dataset:build"),
            encoder="template_encoder",
            summary="lines such as 3 + 4 = 7",
        )
    ]


@hookimpl
def hekaton_tokenizers() -> list[Tokenizer]:
    return [
        Tokenizer(
            "template_tokenizer",
            build=Ref("hekaton.scaffold.templates.tokenizer:build"),
            summary="one id per ASCII character",
        )
    ]


@hookimpl
def hekaton_encoders() -> list[Encoder]:
    return [
        Encoder(
            "template_encoder",
            build=Ref("hekaton.scaffold.templates.encoder:build"),
            summary="texts, of which what follows '=' is learned",
        )
    ]


@hookimpl
def hekaton_orders() -> list[Order]:
    return [
        Order(
            "template_order",
            build=Ref("hekaton.scaffold.templates.order:build"),
            summary="forwards and backwards in turn",
        )
    ]


@hookimpl
def hekaton_row_makers() -> list[RowMaker]:
    return [
        RowMaker(
            "template_row_maker",
            build=Ref("hekaton.scaffold.templates.row_maker:build"),
            summary="tokens one after the other, cut into rows",
        )
    ]


@hookimpl
def hekaton_converters() -> list[Converter]:
    return [
        Converter(
            "template_converter",
            build=Ref("hekaton.scaffold.templates.converter:build"),
            summary="keeps logits between bounds",
        )
    ]


@hookimpl
def hekaton_parallel_styles() -> list[ParallelStyle]:
    return [
        ParallelStyle(
            "template_style",
            build=Ref("hekaton.scaffold.templates.style:build"),
            summary="linear layer sharded by its outputs, which are gathered",
        )
    ]


@hookimpl
def hekaton_context_parallel() -> list[ContextParallel]:
    return [
        ContextParallel(
            "template_context",
            build=Ref("hekaton.scaffold.templates.context:build"),
            requires=("positions",),
            summary="every rank gathers all keys and values",
        )
    ]


@hookimpl
def hekaton_dispatchers() -> list[Dispatcher]:
    return [
        Dispatcher(
            "template_dispatcher",
            build=Ref("hekaton.scaffold.templates.dispatcher:build"),
            summary="every rank gathers all tokens",
        )
    ]


@hookimpl
def hekaton_objectives() -> list[Objective]:
    return [
        Objective(
            "template_objective",
            build=Ref("hekaton.scaffold.templates.objective:build"),
            summary="the next token, from some token of a document on",
        )
    ]


@hookimpl
def hekaton_optimizers() -> list[Optimizer]:
    return [
        Optimizer(
            "template_optimizer",
            build=Ref("hekaton.scaffold.templates.optimizer:build"),
            summary="the sign of a momentum (Lion)",
        )
    ]


@hookimpl
def hekaton_lr_schedules() -> list[LRSchedule]:
    return [
        LRSchedule(
            "template_schedule",
            build=Ref("hekaton.scaffold.templates.schedule:build"),
            summary="linear warmup, then 1 / sqrt(step)",
        )
    ]


@hookimpl
def hekaton_loggers() -> list[Logger]:
    return [
        Logger(
            "template_logger",
            build=Ref("hekaton.scaffold.templates.logger:build"),
            summary="a line of CSV per step and metric",
        )
    ]


@hookimpl
def hekaton_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        CheckpointFormat(
            "template_format",
            build=Ref("hekaton.scaffold.templates.weight_format:build"),
            summary="a .npy file per tensor",
        )
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "template_check",
            rule=Ref("hekaton.scaffold.templates.rule:rate_is_bounded"),
            summary="the learning rate is at most that of the section",
        )
    ]


@hookimpl
def hekaton_identity_subjects() -> list[IdentitySubject]:
    return [
        IdentitySubject(
            "template_subject",
            build=Ref("hekaton.scaffold.templates.subject:build"),
            summary="the container image of each machine",
        )
    ]


@hookimpl
def hekaton_evaluations() -> list[Evaluation]:
    return [
        Evaluation(
            "template_evaluation",
            build=Ref("hekaton.scaffold.templates.evaluation:build"),
            summary="the largest weight every so many steps",
        )
    ]


@hookimpl
def hekaton_commands() -> list[Command]:
    return [
        Command(
            "template_command",
            run=Ref("hekaton.scaffold.templates.command:run"),
            summary="print what a run reads",
        )
    ]


@hookimpl
def hekaton_run_started(config: "JobConfig", step: int, control: "RunControl") -> None:
    """template_hooks: say how much there is to do."""
    logging.getLogger("hekaton").info("%d of %d steps are done", step, config.training.steps)


@hookimpl
def hekaton_step_ended(step: int, metrics: Mapping[str, float], control: "RunControl") -> None:
    """template_hooks: stop a run that has learned enough."""
    if metrics.get("loss", 1.0) < 0.01:  # no metrics at steps that are not logged
        control.ask(save=True, stop=True, reason="the loss is below 0.01")


@hookimpl
def hekaton_checkpoint_saved(step: int, folder: "Path | UrlPath") -> None:
    """template_hooks: say where the newest checkpoint is."""
    logging.getLogger("hekaton").info("step %d is in %s", step, folder)


@hookimpl
def hekaton_run_ended(step: int, error: BaseException | None) -> None:
    """template_hooks: say how the run ended."""
    logging.getLogger("hekaton").info("ended after step %d: %s", step, error or "done")


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "template_model",
            schema=Ref("hekaton.scaffold.templates.settings:DecoderSection"),
            summary="shape of the model",
        ),
        Section(
            "template_dataset",
            schema=Ref("hekaton.scaffold.templates.settings:DatasetSection"),
            summary="size of the dataset",
        ),
        Section(
            "template_encoder",
            schema=Ref("hekaton.scaffold.templates.settings:EncoderSection"),
            summary="what is learned of a text",
        ),
        Section(
            "template_converter",
            schema=Ref("hekaton.scaffold.templates.settings:ConverterSection"),
            summary="bounds of logits",
        ),
        Section(
            "template_objective",
            schema=Ref("hekaton.scaffold.templates.settings:ObjectiveSection"),
            summary="where learning begins",
        ),
        Section(
            "template_optimizer",
            schema=Ref("hekaton.scaffold.templates.settings:OptimizerSettings"),
            summary="settings of the optimizer",
        ),
        Section(
            "template_evaluation",
            schema=Ref("hekaton.scaffold.templates.settings:JudgementSection"),
            summary="how often the weights are looked at",
        ),
        Section(
            "template_logger",
            schema=Ref("hekaton.scaffold.templates.settings:LoggerSection"),
            summary="where lines are written",
        ),
        Section(
            "template_check",
            schema=Ref("hekaton.scaffold.templates.settings:CheckSection"),
            summary="bound of the learning rate",
        ),
    ]
