"""Llama 4 trains, resumes, starts from published files and ends in the layout of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
)

from hekaton.cli import main
from hekaton.plugins import Plugins
from hekaton.testing import run_command, run_processes
from hekaton.testing.distributed import NamedLayout
from hekaton.weights.counterpart import adapter_of, read_config
from hekaton_llama4.spec import flavors

ROOT = Path(__file__).parents[3]
TINY = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 48,
    "attention_chunk_size": 5, "floor_scale": 3,
}  # fmt: skip
SHORT = ["--training.seq_len", "32", "--training.local_batch_size", "4", "--metrics.log_freq", "1"]


def losses(text: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step +(\d+)  loss ([\d.]+)", text)}


def test_one_changed_line_of_the_quick_start_trains_llama4_and_it_resumes(tmp_path):
    page = (ROOT / "docs" / "index.md").read_text()
    (quick_start,) = re.findall(r'```toml title="my_run.toml"\n(.*?)```', page, re.DOTALL)
    changed = quick_start.replace('name = "llama3"', 'name = "llama4"')
    assert len(set(quick_start.splitlines()) ^ set(changed.splitlines())) == 2
    (tmp_path / "my_run.toml").write_text(changed)
    overrides = json.dumps(TINY | {"moe": {"hidden_dim": 16}})
    small = ["my_run.toml", *SHORT, "--optimizer.lr", "2e-2", "--model.overrides", overrides]
    first = run_command("train", *small, "--training.steps", "20", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    of_first = losses(first.stderr)
    assert of_first[20] < of_first[1] - 0.5
    further = run_command("train", *small, "--training.steps", "22", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert "resumed at step 20" in further.stderr
    assert list(losses(further.stderr)) == [21, 22]


TEXT = {
    "hidden_size": 32, "intermediate_size": 24, "intermediate_size_mlp": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 264,
    "num_local_experts": 4, "interleave_moe_layer_step": 2, "attention_chunk_size": 6, "floor_scale": 4,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 16.0, "low_freq_factor": 1.0,
        "high_freq_factor": 1.0, "original_max_position_embeddings": 8_192,
    },
}  # fmt: skip
SIGHT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vision_output_dim": 16, "image_size": 28, "patch_size": 14, "projector_input_dim": 16,
    "projector_output_dim": 16,
}  # fmt: skip


@pytest.fixture
def published(tmp_path, monkeypatch) -> Llama4ForConditionalGeneration:
    """A tiny model of the published architecture, saved in ``published``; its language model is the flavor
    ``tiny``."""
    torch.manual_seed(0)
    model = Llama4ForConditionalGeneration(Llama4Config(text_config=TEXT, vision_config=SIGHT))
    model.save_pretrained(tmp_path / "published", max_shard_size="40KB")
    content = json.loads((tmp_path / "published" / "config.json").read_text())
    assert content["architectures"] == ["Llama4ForConditionalGeneration"]
    monkeypatch.setitem(
        flavors, "tiny", read_config(adapter_of(Plugins.discover(), "llama4"), content, what="it")
    )
    monkeypatch.chdir(tmp_path)
    return model


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def converted(source: str, target: str, *words: str) -> None:
    assert main(["convert", "from-hf", source, f"{target}-step", *words]) == 0
    assert main(["convert", "to-hf", f"{target}-step", target]) == 0


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_published_files_come_in_without_vision_and_go_out_bit_for_bit(published, tmp_path, caplog, capsys):
    there = tensors_in(tmp_path / "published")
    text = {name for name in there if name.startswith("language_model.")}
    assert main(["convert", "from-hf", "published", "step"]) == 2
    said = capsys.readouterr().err
    assert "error: published holds a second model, vision, which is not trained here: " in said
    assert "vision_model.class_embedding" in said
    assert "multi_modal_projector.linear_1.weight" in said
    assert "leave it out with 'hekaton convert from-hf --leave_out vision'" in said
    assert not (tmp_path / "step").exists()

    converted("published", "back", "--leave_out", "vision")
    notice = f"published: vision: left out, {len(there) - len(text)} tensors"
    assert notice in [record.getMessage() for record in caplog.records]
    back = tensors_in(tmp_path / "back")
    assert same(back, {name.removeprefix("language_model."): there[name] for name in text})
    converted("back", "again")  # without the prefix
    assert same(tensors_in(tmp_path / "again"), back)

    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(opened) is Llama4ForCausalLM
    assert not any(info.values())
    tokens = torch.arange(20)[None]
    assert torch.equal(opened(tokens).logits, published.language_model(tokens).logits)
    config = opened.config
    assert (config.bos_token_id, config.eos_token_id, config.max_position_embeddings) == (1, [2, 3], 512)


def test_a_run_starts_from_published_files(published, tmp_path):
    ours = flavors["tiny"]
    overrides = {name: getattr(ours, name) for name in (*TINY, "vocab_size")}
    overrides["moe"] = {"n_experts": 4, "hidden_dim": 24}
    words = [
        "--model.name", "llama4", "--model.overrides", json.dumps(overrides), "--training.dataset", "python_stdlib",
        "--model.tokenizer", "byte", *SHORT, "--training.steps", "1", "--checkpoint.enable",
        "--checkpoint.initial_load_path", "published", "--checkpoint.initial_load_in_hf",
    ]  # fmt: skip
    refused = run_command("train", *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "published holds a second model, vision, which is not trained here" in refused.stderr
    assert 'checkpoint.initial_load_leave_out = ["vision"]' in refused.stderr
    done = run_command("train", *words, "--checkpoint.initial_load_leave_out", "vision", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "started with the weights of published" in done.stderr
    assert "published: vision: left out, " in done.stderr


LAYOUTS = ROOT / "tests" / "distributed" / "layouts.py"
EXPERTS = {
    "n_experts": 8,
    "hidden_dim": 16,
    "bias_rate": 1e-3,
    "sequence_balance": 1e-2,
    "batch_balance": 1e-2,
}
MODELS = {
    "Scout": TINY | {"interleave_moe_layer_step": 1, "moe": EXPERTS},
    "Maverick": TINY | {"interleave_moe_layer_step": 2, "qk_norm": False, "moe": EXPERTS | {"top_k": 2}},
}  # fmt: skip
CASES = {
    "Scout": [
        "tp2", "pp2", "shard4 ep4", "shard2 tp2 ep2", "shard2 cp2 ep2", "shard4 ep2 etp2", "replicate2 shard2 ep2",
        "cp2 by ring", "cp2 by ulysses", "cp2 ep2 by ring, contiguous", "cp2 ep2 compiled",
    ],
    "Maverick": ["tp2", "shard2 cp2 ep2", "shard2 pp2 ep2", "shard2 cp2 by ulysses"],
}  # fmt: skip
MORE = {
    " by ring": ["--parallelism.context_parallel_strategy", "ring"],
    " by ulysses": ["--parallelism.context_parallel_strategy", "ulysses"],
    ", contiguous": ["--parallelism.context_parallel_load_balancer", "none"],
    " compiled": ["--compile.enable", "--compile.backend", "aot_eager"],
}


def layout_of(case: str) -> tuple[NamedLayout, list[str]]:
    """The degrees that a case names, and the flags of the words that follow."""
    flags = []
    for word, its in MORE.items():
        if word in case:
            case, flags = case.replace(word, ""), [*flags, *its]
    return NamedLayout(case), flags


def layout_flags(model: str, layout: str) -> list[str]:
    named, more = layout_of(layout)
    return [
        "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
        "--training.mixed_precision_reduce", "float64", "--model.name", "llama4", "--model.flavor",
        "debugmodel", "--model.overrides", json.dumps(MODELS[model] | {"vocab_size": 264}), *named.flags, *more,
        "--training.local_batch_size", str(8 // named.dp),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layouts_compute_what_one_process_does(tmp_path):
    """Losses, every gradient, gradient norm, biases and counts of experts, in float64, after one step and three."""
    shared = {"folder": str(tmp_path), "timeout": 400}
    alone = {model: {"flags": layout_flags(model, "shard1"), "last_gradients": True} for model in MODELS}
    run_processes(LAYOUTS, "run", processes=1, cases=alone, reference=True, **shared)
    found = {}
    for processes in (2, 4):
        cases = {
            f"{model}, {layout}": {
                "flags": layout_flags(model, layout), "reference": model, "last_gradients": True,
            }
            for model, layouts in CASES.items()
            for layout in layouts
            if layout_of(layout)[0].processes == processes
        }  # fmt: skip
        run_processes(LAYOUTS, "run", processes=processes, cases=cases, reference=False, **shared)
        found |= json.loads((tmp_path / f"differences-{processes}.json").read_text())
    assert len(found) == sum(map(len, CASES.values()))
    equal = ("weights", "buffers", "counts", "report")
    close = ("gradients", "first_loss", "grad_norm", "last_loss")
    wrong = {
        name: got
        for name, got in found.items()
        if any(got[key] for key in equal) or max(got[key] for key in close) > 1e-10
    }
    assert not wrong, "\n".join(f"{name}: {got}" for name, got in wrong.items())
