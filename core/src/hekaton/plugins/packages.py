"""What the other distributions of this repository contribute: an error can then say which one to install."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "hekaton-deepseek-v3": {"model": ("deepseek_v3",), "hf adapter": ("deepseek_v3",)},
    "hekaton-float8": {
        "converter": ("quantize.grouped_mm.float8", "quantize.linear.float8"),
        "parallel style": ("float8_gathering_colwise", "float8_rowwise", "float8_sequence_norm"),
        "section": ("quantize.grouped_mm.float8", "quantize.linear.float8"),
        "check": ("float8_can_be_combined",),
    },
    "hekaton-flux": {
        "model": ("flux",),
        "hf adapter": ("flux",),
        "dataset": (
            "cc12m-test", "cc12m-wds", "coco-validation", "encoded_images", "image_folder", "shapes",
            "shapes_validation", "webdataset",
        ),
        "encoder": ("captioned_images",),
        "row maker": ("images",),
        "objective": ("flow_matching",),
        "section": ("encoder", "flow_matching", "flux_training", "flux_validation", "inference"),
        "check": ("flow_matching_holds_together",),
        "checkpoint format": ("flux_file",),
        "command": ("flux",),
    },
    "hekaton-eval": {
        "check": ("tasks_can_be_asked",),
        "command": ("eval",),
        "evaluation": ("lm_eval",),
        "section": ("evaluation",),
    },
    "hekaton-gpt-oss": {"model": ("gpt_oss",), "hf adapter": ("gpt_oss",)},
    "hekaton-hf": {
        "check": ("assets_can_be_exported",),
        "tokenizer": ("hf",),
        "dataset": ("c4", "c4_test", "c4_validation", "chat", "hub_stream", "stream", "text"),
        "encoder": ("chat", "stream"),
        "section": ("chat_dataset", "hf_tokenizer", "hub_stream", "stream_dataset", "text_dataset"),
        "checkpoint format": ("hf",),
        "command": ("convert_from_hf", "convert_to_hf", "download"),
    },
    "hekaton-llama3": {"model": ("llama3",), "hf adapter": ("llama3",)},
    "hekaton-llama4": {"model": ("llama4",), "hf adapter": ("llama4",)},
    "hekaton-lora": {
        "check": ("adapters_have_a_base", "lora_export_is_written"),
        "checkpoint format": ("peft",),
        "converter": ("lora",),
        "section": ("lora",),
    },
    "hekaton-mlflow": {"logger": ("mlflow",), "section": ("mlflow",)},
    "hekaton-mx": {
        "converter": ("quantize.grouped_mm.mx", "quantize.linear.mx"),
        "section": ("quantize.grouped_mm.mx", "quantize.linear.mx"),
        "check": ("mx_can_be_combined",),
    },
    "hekaton-parallel": {
        "parallel style": (
            "biased_experts", "colwise", "gather_for_heads", "gathering_colwise", "gathering_vocab_output",
            "grouped_experts", "head_norm", "head_parameters", "local_linear", "local_norm", "part_layer",
            "part_linear", "part_norm", "replicate", "rowwise", "sequence_norm", "summed_rowwise",
            "vocab_embedding", "vocab_output", "whole_colwise", "whole_rowwise",
        ),
        "context parallel": ("allgather", "ring", "ulysses"),
        "dispatcher": ("alltoall", "deepep"),
        "check": ("dispatcher_sends_the_precision",),
    },
    "hekaton-qwen3": {"model": ("qwen3",), "hf adapter": ("qwen3",)},
    "hekaton-tensorboard": {"logger": ("tensorboard",)},
    "hekaton-torchao": {"optimizer": ("AdamW8bit",), "section": ("adamw_8bit",)},
    "hekaton-wandb": {"logger": ("wandb",), "section": ("wandb",)},
}  # fmt: skip
"""Distribution -> kind, as errors write it -> names."""

CONVERTERS = {
    "float8": "quantize.linear.float8",
    "mx": "quantize.linear.mx",
    "quantize.dense.float8": "quantize.linear.float8",
    "quantize.moe.float8": "quantize.grouped_mm.float8",
}
"""Names of converters in run files for other versions of torchtitan -> what they are called now."""


def converter_hint(name: str) -> str:
    """What a converter of an earlier name is called now; empty for other names."""
    now = CONVERTERS.get(name, name)
    if now not in CONVERTERS.values():
        return ""
    called = f"'{name}' is called '{now}' now\n" if now != name else ""
    offered = any(now in kinds.get("converter", ()) for kinds in NAMES.values())
    return called + (
        install_hint("converter", now) if offered else f"no plugin of hekaton contributes '{now}' yet"
    )


def install_hint(kind: str, name: str) -> str:
    """Which distribution contributes it, where that is not installed; empty otherwise."""
    for distribution, kinds in NAMES.items():
        if name in kinds.get(kind, ()) and not _is_installed(distribution):
            return f"'{name}' comes with {distribution}: pip install {distribution}"
    return ""


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
