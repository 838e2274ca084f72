"""Adapters written by an export: PEFT and transformers compute with them what hekaton does."""

import dataclasses
import json

import pytest
import torch

from hekaton.building import build_meta, materialize
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.config import load
from hekaton.errors import CheckpointError
from hekaton.mesh import ParallelDims
from hekaton.weights import Fuse, Transpose, WeightTable, entry, whole
from hekaton.weights.format import Unmerged, Weights, WriteOptions
from hekaton_lora.linear import AddedProduct
from hekaton_lora.peft import PeftFormat

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 264}
MODELS = {
    "llama3": ("llama3", "debugmodel", []),
    "llama3 tied": ("llama3", "debugmodel_tied", ["--lora.targets", "layers.*.attention.{wq,wv}"]),
    "llama3 one layer and output": (
        "llama3",
        "debugmodel",
        ["--lora.targets", "layers.0.attention.wk,output"],
    ),
    "qwen3": ("qwen3", "debugmodel", []),
}
TOKENS = torch.randint(264, (2, 24), generator=torch.Generator().manual_seed(5))


def flags_of(name):
    model, flavor, more = MODELS[name]
    return [
        "--model.name", model, "--model.flavor", flavor, "--model.tokenizer", "byte",
        "--model.overrides", json.dumps(SIZES), "--training.steps", "2", "--training.seq_len", "16",
        "--training.local_batch_size", "2", "--training.mixed_precision_param", "float32",
        "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "0.05", "--checkpoint.enable",
        "--lora.alpha", "6", *more,
    ]  # fmt: skip


# PEFT asks transformers 5 under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@dataclasses.dataclass
class Exported:
    flags: list
    base: object
    step: object
    merged: object
    adapter: object


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A base in the layout of Hugging Face, a step of adapters on it, and both exports of that."""
    folder = tmp_path_factory.mktemp("exported")
    flags = flags_of(request.param)
    seed = ["--checkpoint.create_seed_checkpoint", "--job.dump_folder", str(folder / "seed")]
    assert main(["train", *flags, *seed]) == 0
    base, run = folder / "base", folder / "run"
    assert main(["convert", "to-hf", str(folder / "seed" / "checkpoint" / "step-0"), str(base)]) == 0
    start = ["--checkpoint.initial_load_path", str(base), "--checkpoint.initial_load_in_hf"]
    flags = [*flags, "--model.converters", "lora", *start, "--debug.seed", "3"]
    assert main(["train", *flags, "--job.dump_folder", str(run)]) == 0
    step = run / "checkpoint" / "step-2"
    for verb, target in (("to-hf", "merged"), ("to-peft", "adapter")):
        assert main(["convert", verb, str(step), str(folder / target)]) == 0
    return Exported(flags, base, step, folder / "merged", folder / "adapter")


def by_transformers(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def by_hekaton(exported):
    loaded = load([], exported.flags)
    model = build_meta(loaded.config, loaded.plugins, ParallelDims()).model
    materialize(model, torch.device("cpu"))
    tensors = {name: tensor.read() for name, tensor in open_model(exported.step).tensors.items()}
    model.load_state_dict(tensors, strict=False)
    return model.eval()(TOKENS)


@torch.no_grad()
def test_three_ways_to_compute_give_the_same_logits(exported):
    from peft import PeftModel

    ours = by_hekaton(exported)
    merged = by_transformers(exported.merged)(TOKENS).logits
    adapted = PeftModel.from_pretrained(by_transformers(exported.base), exported.adapter)
    torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted(TOKENS).logits, ours, rtol=1e-4, atol=1e-5)
    base = by_transformers(exported.base)(TOKENS).logits
    assert (base - ours).abs().max() > 1e-2  # the adapters do something


@torch.no_grad()
def test_peft_merges_to_the_merged_export(exported):
    from peft import PeftModel

    by_peft = PeftModel.from_pretrained(by_transformers(exported.base), exported.adapter).merge_and_unload()
    ours = by_transformers(exported.merged).state_dict()
    for name, tensor in by_peft.state_dict().items():
        torch.testing.assert_close(ours[name], tensor)


def test_the_config_names_the_base_and_few_modules(exported):
    config = json.loads((exported.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(exported.base)
    assert (config["r"], config["lora_alpha"]) == (8, 6)
    targets = " ".join(config["target_modules"])
    assert targets in (
        "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj",
        "q_proj v_proj",
        "lm_head model.layers.0.self_attn.k_proj",
    )


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_a_run_exports_at_its_end_what_a_conversion_does(export, tmp_path):
    flags = [*flags_of("llama3"), "--model.converters", "lora", "--job.dump_folder", str(tmp_path)]
    last = ["--checkpoint.last_save_in_hf", "--checkpoint.last_save_model_only", "--lora.export", export]
    assert main(["train", *flags, *last]) == 0
    checkpoint, converted = tmp_path / "checkpoint", tmp_path / "converted"
    verb = {"merged": "to-hf", "adapter": "to-peft"}[export]
    assert main(["convert", verb, str(checkpoint / "step-2"), str(converted)]) == 0
    files = {file.name: file.read_bytes() for file in converted.iterdir()}
    assert {file.name: file.read_bytes() for file in (checkpoint / "step-2-hf").iterdir()} == files
    assert ("adapter_model.safetensors" in files) == (export == "adapter")


def test_a_model_without_adapters_has_none_to_write(tmp_path, capsys):
    seed = ["--checkpoint.create_seed_checkpoint", "--job.dump_folder", str(tmp_path)]
    assert main(["train", *flags_of("llama3"), *seed]) == 0
    step, out = tmp_path / "checkpoint" / "step-0", tmp_path / "out"
    assert main(["convert", "to-peft", str(step), str(out)]) == 2
    assert "there are no adapters of the converter 'lora' in this model" in capsys.readouterr().err
    assert not out.exists()


def test_adapters_are_not_read(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert main(["convert", "from-peft", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "adapters of PEFT are written, and cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table_entry", "message"),
    [
        (entry(("w", "other"), "both.weight", Fuse((4, 4))), "is a part of both.weight"),
        (entry("w", "w.weight", Transpose()), "with more than its rows in another order"),
        (entry("w", "w"), "is a part of w: that layer can have none of PEFT's"),
    ],
)
def test_a_layer_that_peft_cannot_adapt_is_refused(table_entry, message, tmp_path):
    from hekaton.draft import Merge

    parts = ["w", "w.lora_a", "w.lora_b"]
    merge = Merge(into="w", parts=parts, make=AddedProduct(2, 1.0))
    shapes = {"w": (4, 4), "other": (4, 4), "w.lora_a": (2, 4), "w.lora_b": (4, 2)}
    tensors = {name: whole(torch.ones(shape)) for name, shape in shapes.items()}
    unmerged = Unmerged(merges=[merge], table=WeightTable(entries=[table_entry]), tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        PeftFormat(None).write(tmp_path, Weights(config={}, tensors={}, unmerged=unmerged), WriteOptions())
    assert not list(tmp_path.iterdir())
