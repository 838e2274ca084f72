"""Evaluation by EleutherAI's lm-evaluation-harness for hekaton."""

from hekaton.contributions import Check, Command, Evaluation, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"

NEEDS = ("lm-eval>=0.4.13",)


@hookimpl
def hekaton_commands() -> list[Command]:
    return [
        Command(
            "eval",
            run=Ref("hekaton_eval.command:run"),
            needs=NEEDS,
            summary="judge a model by tasks of the lm-evaluation-harness",
        )
    ]


@hookimpl
def hekaton_evaluations() -> list[Evaluation]:
    return [
        Evaluation(
            "lm_eval",
            build=Ref("hekaton_eval.in_run:build"),
            section="evaluation",
            needs=NEEDS,
            summary="tasks of the lm-evaluation-harness between the steps of a run",
        )
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "tasks_can_be_asked",
            rule=Ref("hekaton_eval.checks:tasks_can_be_asked"),
            summary="the harness and the task files of [[evaluation.tasks]] are there",
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "evaluation",
            schema=Ref("hekaton_eval.sections:EvaluationSection"),
            summary="tasks by which a run is evaluated between its steps",
        )
    ]
