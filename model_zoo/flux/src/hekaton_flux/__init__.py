"""FLUX.1 for hekaton."""

from hekaton.contributions import (
    Dataset,
    Encoder,
    HFAdapter,
    Model,
    Objective,
    Ref,
    RowMaker,
    Section,
    hookimpl,
)

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "flux",
            spec=Ref("hekaton_flux.spec:train_spec"),
            summary="FLUX.1, a rectified-flow transformer from text to images",
        )
    ]


@hookimpl
def hekaton_objectives() -> list[Objective]:
    return [
        Objective(
            "flow_matching",
            build=Ref("hekaton_flux.objective:flow_matching"),
            takes="images with texts",
            summary="the velocity from image to noise, in latents",
        )
    ]


@hookimpl
def hekaton_datasets() -> list[Dataset]:
    return [
        Dataset(
            "shapes",
            build=Ref("hekaton_flux.images:build"),
            check=Ref("hekaton_flux.images:check"),
            section="flow_matching",
            encoder="captioned_images",
            summary="drawn shapes with captions, for trials",
        ),
        Dataset(
            "shapes_validation",
            build=Ref("hekaton_flux.images:build_validation"),
            check=Ref("hekaton_flux.images:check"),
            section="flow_matching",
            encoder="captioned_images",
            summary="other drawn shapes with captions",
        ),
    ]


@hookimpl
def hekaton_encoders() -> list[Encoder]:
    return [
        Encoder(
            "captioned_images",
            build=Ref("hekaton_flux.rows:encoder"),
            section="flow_matching",
            gives="images with texts",
            summary="images to latents, and their texts, by frozen encoders",
        )
    ]


@hookimpl
def hekaton_row_makers() -> list[RowMaker]:
    return [
        RowMaker(
            "images",
            build=Ref("hekaton_flux.rows:row_maker"),
            section="flow_matching",
            takes="images with texts",
            summary="one image in each row, with its text",
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "flow_matching",
            schema=Ref("hekaton_flux.settings:FlowMatchingSection"),
            summary="flow matching: sizes, times, dropout of the text",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "flux",
            table=Ref("hekaton_flux.diffusers:table"),
            write_config=Ref("hekaton_flux.diffusers:write_config"),
            read_config=Ref("hekaton_flux.diffusers:read_config"),
            architectures=("FluxTransformer2DModel",),
            summary="weights and config.json as diffusers' FluxTransformer2DModel",
        )
    ]
