"""Hugging Face checkpoints, tokenizers and text datasets for hekaton, and downloads from the Hub."""

from hekaton.contributions import (
    Check,
    CheckpointFormat,
    Command,
    Dataset,
    Encoder,
    Ref,
    Section,
    Tokenizer,
    hookimpl,
)

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_tokenizers() -> list[Tokenizer]:
    return [
        Tokenizer(
            "hf",
            build=Ref("hekaton_hf.tokenizer:build"),
            section="hf_tokenizer",
            summary="a tokenizer.json, or ours",
        )
    ]


@hookimpl
def hekaton_datasets() -> list[Dataset]:
    return [
        Dataset(
            "text",
            build=Ref("hekaton_hf.text:build"),
            check=Ref("hekaton_hf.checks:check_text"),
            section="text_dataset",
            summary="local .jsonl, .json, .txt and .parquet files",
        ),
        Dataset(
            "chat",
            build=Ref("hekaton_hf.chat.dataset:build"),
            check=Ref("hekaton_hf.checks:check_chat"),
            section="chat_dataset",
            encoder="chat",
            summary="conversations in local .jsonl, .json and .parquet files",
        ),
        Dataset(
            "stream",
            build=Ref("hekaton_hf.stream.documents:build"),
            check=Ref("hekaton_hf.stream.documents:check"),
            section="stream_dataset",
            encoder="stream",
            summary=".jsonl and .parquet files behind URLs, read while training",
        ),
        Dataset(
            "hub_stream",
            build=Ref("hekaton_hf.stream.hub:build"),
            check=Ref("hekaton_hf.stream.hub:check"),
            section="hub_stream",
            encoder="stream",
            summary="a dataset of the Hugging Face Hub by name, read while training",
        ),
        Dataset(
            "c4",
            build=Ref("hekaton_hf.c4:build_train"),
            check=Ref("hekaton_hf.c4:check"),
            summary="C4, English; downloads 305 GB",
        ),
        Dataset(
            "c4_validation",
            build=Ref("hekaton_hf.c4:build_validation"),
            check=Ref("hekaton_hf.c4:check"),
            summary="the validation split of C4, English; downloads",
        ),
        Dataset(
            "c4_test",
            build=Ref("hekaton_hf.c4:build_test"),
            check=Ref("hekaton_hf.c4:check_test"),
            summary="documents of C4 in a local folder",
        ),
    ]


@hookimpl
def hekaton_encoders() -> list[Encoder]:
    return [
        Encoder(
            "chat",
            build=Ref("hekaton_hf.chat.encoder:build"),
            check=Ref("hekaton_hf.chat.encoder:check"),
            section="chat_dataset",
            summary="conversations, by a chat template",
        ),
        Encoder(
            "stream",
            build=Ref("hekaton_hf.stream.documents:build_encoder"),
            summary="the texts of parts of files",
        ),
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "hf_tokenizer",
            schema=Ref("hekaton_hf.sections:HFTokenizerSection"),
            summary="how the tokenizer 'hf' encodes",
        ),
        Section(
            "text_dataset",
            schema=Ref("hekaton_hf.sections:TextDatasetSection"),
            summary="what the documents of dataset 'text' are",
        ),
        Section(
            "hub_stream",
            schema=Ref("hekaton_hf.sections:HubStreamSection"),
            summary="which dataset of the Hub is read, and what its texts are",
        ),
        Section(
            "stream_dataset",
            schema=Ref("hekaton_hf.sections:StreamDatasetSection"),
            summary="what the texts of dataset 'stream' are, and how they are read",
        ),
        Section(
            "chat_dataset",
            schema=Ref("hekaton_hf.chat.sections:ChatDatasetSection"),
            summary="what conversations of dataset 'chat' are, and what of them is learned",
        ),
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "assets_can_be_exported",
            rule=Ref("hekaton_hf.checks:assets_can_be_exported"),
            summary="the files that an export takes along can be read and fit the model",
        ),
    ]


@hookimpl
def hekaton_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        CheckpointFormat(
            "hf",
            build=Ref("hekaton_hf.checkpoint:build"),
            summary="config.json and safetensors, as from_pretrained opens them",
        )
    ]


@hookimpl
def hekaton_commands() -> list[Command]:
    return [
        Command(
            "download",
            run=Ref("hekaton_hf.download:run"),
            summary="fetch a tokenizer, configuration or weights from the Hugging Face Hub",
        ),
        Command(
            "convert_from_hf",
            run=Ref("hekaton_hf.commands:convert_from_hf"),
            summary="the same as 'convert from-hf'",
        ),
        Command(
            "convert_to_hf",
            run=Ref("hekaton_hf.commands:convert_to_hf"),
            summary="the same as 'convert to-hf'",
        ),
    ]
