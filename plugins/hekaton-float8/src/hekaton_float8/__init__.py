"""Linear layers and experts whose products are computed in float8, by torchao, for hekaton."""

from hekaton.contributions import Check, Converter, ParallelStyle, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"

LINEAR = "quantize.linear.float8"
GROUPED = "quantize.grouped_mm.float8"
TORCHAO = ("torchao>=0.18",)
_STYLES = {
    "float8_sequence_norm": "norm of this rank's part of the sequence, gathered afterwards in float8",
    "float8_gathering_colwise": "linear layer sharded by its outputs, which gathers its input in float8",
    "float8_rowwise": "linear layer sharded by its inputs, which gathers gradients in float8",
}


@hookimpl
def hekaton_converters() -> list[Converter]:
    return [
        Converter(
            LINEAR,
            build=Ref("hekaton_float8.linear:LinearFloat8"),
            section=LINEAR,
            summary="products of linear layers in float8",
            needs=TORCHAO,
        ),
        Converter(
            GROUPED,
            build=Ref("hekaton_float8.grouped:GroupedFloat8"),
            section=GROUPED,
            summary="products of experts in float8",
            needs=TORCHAO,
        ),
    ]


@hookimpl
def hekaton_parallel_styles() -> list[ParallelStyle]:
    return [
        ParallelStyle(
            style,
            build=Ref(f"hekaton_float8.tensor_parallel:{style}"),
            section=LINEAR,
            summary=summary,
            needs=TORCHAO,
        )
        for style, summary in _STYLES.items()
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            LINEAR,
            schema=Ref("hekaton_float8.sections:Float8Section"),
            summary="settings of converter 'quantize.linear.float8'",
        ),
        Section(
            GROUPED,
            schema=Ref("hekaton_float8.sections:GroupedFloat8Section"),
            summary="settings of converter 'quantize.grouped_mm.float8'",
        ),
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "float8_can_be_combined",
            rule=Ref("hekaton_float8.combinations:float8_can_be_combined"),
            summary="float8 with other converters, layouts and devices",
        )
    ]
