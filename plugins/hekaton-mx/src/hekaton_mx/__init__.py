"""Linear layers and experts whose products are computed in MXFP8 or NVFP4, by torchao, for hekaton."""

from hekaton.contributions import Check, Converter, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"

LINEAR = "quantize.linear.mx"
GROUPED = "quantize.grouped_mm.mx"
TORCHAO = ("torchao>=0.18",)


@hookimpl
def hekaton_converters() -> list[Converter]:
    return [
        Converter(
            LINEAR,
            build=Ref("hekaton_mx.linear:LinearMX"),
            section=LINEAR,
            summary="products of linear layers in MXFP8 or NVFP4",
            needs=TORCHAO,
        ),
        Converter(
            GROUPED,
            build=Ref("hekaton_mx.grouped:GroupedMX"),
            section=GROUPED,
            summary="products of experts in MXFP8",
            needs=TORCHAO,
        ),
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            LINEAR,
            schema=Ref("hekaton_mx.sections:MXSection"),
            summary="settings of converter 'quantize.linear.mx'",
        ),
        Section(
            GROUPED,
            schema=Ref("hekaton_mx.sections:GroupedMXSection"),
            summary="settings of converter 'quantize.grouped_mm.mx'",
        ),
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "mx_can_be_combined",
            rule=Ref("hekaton_mx.combinations:mx_can_be_combined"),
            summary="MXFP8 and NVFP4 with other converters, layouts and devices",
        )
    ]
