"""FLUX.1 for hekaton."""

from hekaton.contributions import (
    Check,
    CheckpointFormat,
    Command,
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
        *(
            Dataset(
                name,
                build=Ref(f"hekaton_flux.{module}:build"),
                check=Ref(f"hekaton_flux.{module}:check"),
                section="flow_matching",
                encoder="captioned_images",
                summary=summary,
            )
            for name, module, summary in (
                ("webdataset", "shards", "tar shards of images with captions"),
                ("cc12m-wds", "shards", "webdataset, by torchtitan's name"),
                ("cc12m-test", "shards", "webdataset, by torchtitan's name"),
                ("coco-validation", "shards", "webdataset, by torchtitan's name"),
                ("image_folder", "folder", "a folder of images with captions"),
                ("encoded_images", "encoded", "what hekaton flux preprocess wrote"),
            )
        ),
    ]


@hookimpl
def hekaton_encoders() -> list[Encoder]:
    return [
        Encoder(
            "captioned_images",
            build=Ref("hekaton_flux.rows:encoder"),
            check=Ref("hekaton_flux.rows:check"),
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
        ),
        *(
            Section(name, schema=Ref(f"hekaton_flux.torchtitan:{schema}"), joins=joins, summary=summary)
            for name, schema, joins, summary in (
                ("encoder", "EncoderSection", "", "frozen encoders, by torchtitan's names"),
                ("inference", "InferenceSection", "", "making images, by torchtitan's names"),
                ("flux_training", "TrainingFields", "training", "fields of torchtitan"),
                ("flux_validation", "ValidationFields", "validation", "fields of torchtitan"),
            )
        ),
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "flow_matching_holds_together",
            rule=Ref("hekaton_flux.checks:flow_matching_holds_together"),
            summary="guidance goes to a model that takes it, images of samples are seen",
        )
    ]


@hookimpl
def hekaton_commands() -> list[Command]:
    return [
        Command(
            "flux",
            run=Ref("hekaton_flux.commands:run"),
            summary="make images with a trained model, or encode a dataset once",
        )
    ]


@hookimpl
def hekaton_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        CheckpointFormat(
            "flux_file",
            build=Ref("hekaton_flux.single_file:build"),
            summary="the single file that FLUX.1 was published in, flux1-dev.safetensors",
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
