"""AdamW with its state in 8 bits, with the quantization of torchao, for hekaton."""

from hekaton.contributions import Optimizer, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_optimizers() -> list[Optimizer]:
    return [
        Optimizer(
            "AdamW8bit",
            build=Ref("hekaton_torchao.adamw:build"),
            section="adamw_8bit",
            summary="AdamW with its state in 8 bits",
            needs=("torchao>=0.18",),
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "adamw_8bit",
            schema=Ref("hekaton_torchao.sections:AdamW8bitSection"),
            summary="settings of AdamW8bit",
        )
    ]
