"""Low-rank adapters (LoRA; Hu et al., 2021) for hekaton."""

from hekaton.contributions import Check, CheckpointFormat, Converter, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_converters() -> list[Converter]:
    return [
        Converter(
            "lora",
            build=Ref("hekaton_lora.converter:Lora"),
            summary="low-rank adapters beside frozen linear layers",
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "lora",
            schema=Ref("hekaton_lora.sections:LoraSection"),
            summary="the adapters of converter 'lora'",
        )
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "adapters_have_a_base",
            rule=Ref("hekaton_lora.checks:adapters_have_a_base"),
            summary="adapters are trained beside weights that were trained before",
        ),
        Check(
            "lora_export_is_written",
            rule=Ref("hekaton_lora.checks:lora_export_is_written"),
            summary="what lora.export asks for is written",
        ),
    ]


@hookimpl
def hekaton_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        CheckpointFormat(
            "peft",
            build=Ref("hekaton_lora.peft:PeftFormat"),
            summary="adapters alone, as PeftModel.from_pretrained opens them",
        )
    ]
