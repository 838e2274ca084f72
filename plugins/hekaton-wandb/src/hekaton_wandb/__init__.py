"""Weights & Biases logger for hekaton."""

from hekaton.contributions import Logger, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_loggers() -> list[Logger]:
    return [
        Logger(
            "wandb", build=Ref("hekaton_wandb.logger:build"), place="run", summary="runs of Weights & Biases"
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "wandb", schema=Ref("hekaton_wandb.section:WandbSection"), summary="settings of Weights & Biases"
        )
    ]
