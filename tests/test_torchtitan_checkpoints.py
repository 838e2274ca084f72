"""Checkpoints that torchtitan 0.2 writes with DCP start a run here: its names and shapes, and the buffers that
it has and lacks. They are written out from its models, since it is not installed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.overrides import override
from hekaton_hf.tokenizer import SHIPPED
from hekaton_qwen3.spec import flavors

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
V, D, F, H, KV, C, E = 2048, 32, 24, 4, 2, 8, 4  # vocabulary, dim, hidden, heads, kv heads, head_dim, experts
BIASED = {"bias_rate": 1e-3}
HEADS = {"dim": D, "n_heads": H, "n_kv_heads": KV, "head_dim": C, "vocab_size": V, "n_layers": 2}
OVERRIDES = {
    "qwen3": HEADS | {"moe": {"n_experts": E, "top_k": 2, "hidden_dim": F, **BIASED}},
    "llama4": HEADS | {
        "hidden_dim": F, "interleave_moe_layer_step": 2, "moe": {"n_experts": E, "hidden_dim": F, **BIASED}
    },
    "gpt_oss": HEADS | {"window": 5, "moe": {"n_experts": E, "top_k": 2, "hidden_dim": F, **BIASED}},
    "deepseek_v3": {
        "dim": D, "n_layers": 2, "n_heads": H, "inter_dim": F, "q_lora_rank": 0, "kv_lora_rank": 16,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "vocab_size": V,
        "moe": {"n_experts": E, "top_k": 2, "hidden_dim": F, "n_groups": 1, "n_limited_groups": 1},
    },
}  # fmt: skip
GQA = {"wq": (H * C, D), "wk": (KV * C, D), "wv": (KV * C, D), "wo": (D, H * C)}
LATENT = {"wq": (H * 12, D), "wkv_a": (16 + 4, D), "kv_norm": (16,), "wkv_b": (H * 16, 16), "wo": (D, H * 8)}
EXPERTS = {"w1": (E, F, D), "w2": (E, D, F), "w3": (E, F, D)}
OF_GPT_OSS = {
    "mlp1_weight": (E, 2 * F, D), "mlp1_bias": (E, 2 * F), "mlp2_weight": (E, D, F), "mlp2_bias": (E, D),
}  # fmt: skip


def dense(hidden: int) -> dict[str, tuple[int, ...]]:
    return {"w1.weight": (hidden, D), "w2.weight": (D, hidden), "w3.weight": (hidden, D)}


def sparse(experts: dict[str, tuple[int, ...]], shared: int = 0) -> dict[str, tuple[int, ...]]:
    """A layer of experts, with the bias that torchtitan keeps for every model."""
    parts = {f"experts.{name}": shape for name, shape in experts.items()}
    parts |= {"router.gate.weight": (E, D), "expert_bias": (E,)}
    return parts | {
        f"shared_experts.{name}": shape for name, shape in (dense(shared) if shared else {}).items()
    }


def of_torchtitan(model: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of its state dict."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (V, D), "norm.weight": (D,), "output.weight": (V, D)
    }  # fmt: skip
    for layer in range(2):
        of_layer = {"attention_norm.weight": (D,), "ffn_norm.weight": (D,)}
        linear = LATENT if model == "deepseek_v3" else GQA
        of_layer |= {f"attention.{name}.weight": shape for name, shape in linear.items()}
        is_dense = layer == 0 and model in ("llama4", "deepseek_v3")
        moe = sparse(OF_GPT_OSS if model == "gpt_oss" else EXPERTS)
        if model == "qwen3":
            of_layer |= {"attention.q_norm.weight": (C,), "attention.k_norm.weight": (C,)}
        if model == "gpt_oss":
            of_layer |= {f"attention.{name}.bias": shape[:1] for name, shape in GQA.items()}
            of_layer["attention.sinks"] = (H,)
            moe["router.gate.bias"] = (E,)
        if model in ("llama4", "deepseek_v3"):
            moe = sparse(EXPERTS, F if model == "llama4" else 2 * F)
        prefix, parts = ("feed_forward", dense(F)) if is_dense else ("moe", moe)
        of_layer |= {f"{prefix}.{name}": shape for name, shape in parts.items()}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes


def saved(shapes: dict[str, tuple[int, ...]], folder: Path) -> dict[str, torch.Tensor]:
    """As torchtitan saves it: the model's tensors by their names, and other state of the run beside them."""
    torch.manual_seed(0)
    tensors = {
        name: torch.rand(shape) + 0.5 if "norm" in name else torch.randn(shape) * 0.1
        for name, shape in shapes.items()
    }
    dcp.save({**tensors, "optimizer.param_groups.output.weight.lr": 1e-3}, checkpoint_id=folder)
    return tensors


def words(model: str, overrides: dict[str, object], tmp_path: Path) -> list[str]:
    """One step whose rate is too small to change a weight by more than rounding."""
    return [
        "train", "--model.name", model, "--model.flavor", "debugmodel_moe" if model == "qwen3" else "debugmodel",
        "--model.overrides", json.dumps(overrides), "--model.tokenizer", "byte", "--training.dataset",
        "python_stdlib", "--training.seq_len", "16", "--training.local_batch_size", "1", "--training.steps", "1",
        "--optimizer.lr", "1e-12", "--lr_scheduler.warmup_steps", "0", "--job.dump_folder", str(tmp_path / "out"),
        "--checkpoint.enable", "--checkpoint.initial_load_path", str(tmp_path / "theirs"),
        "--training.mixed_precision_param", "float32",
    ]  # fmt: skip


@pytest.mark.parametrize("model", OVERRIDES)
def test_a_run_starts_with_its_weights_and_expert_biases(model, tmp_path, capsys):
    """The load of the last step, which it does not keep, begins as in a new model; this is said."""
    tensors = saved(of_torchtitan(model), tmp_path / "theirs")
    assert main(words(model, OVERRIDES[model], tmp_path)) == 0
    loaded = open_model(tmp_path / "out" / "checkpoint" / "step-1").tensors
    for name, tensor in tensors.items():
        # The step has moved each expert's bias by at most the rate and the mean of all moves.
        torch.testing.assert_close(
            loaded[name].read(), tensor, rtol=0, atol=2e-3 if "expert_bias" in name else 1e-8
        )
    loads = {name for name in loaded if name.endswith(".load")}
    assert loaded.keys() == tensors.keys() | loads
    assert bool(loads) == (model != "deepseek_v3")
    assert ("not in the checkpoint, and as in a new model: layers." in capsys.readouterr().err) == bool(loads)


def test_a_bias_that_the_model_is_without_is_refused_with_the_field_that_brings_it(tmp_path, capsys):
    saved(of_torchtitan("qwen3"), tmp_path / "theirs")
    overrides = {**OVERRIDES["qwen3"], "moe": {"n_experts": E, "top_k": 2, "hidden_dim": F}}
    assert main(words("qwen3", overrides, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "has tensors that the model is configured to be without: layers.*.moe.expert_bias (2)" in said
    assert "set model.overrides.moe.bias_rate" in said


def test_it_is_exported_and_generates(tmp_path, monkeypatch, caplog):
    """Without a bias, which files of transformers have no place for."""
    moe = {"n_experts": E, "top_k": 2, "hidden_dim": F}
    config = override(flavors["debugmodel_moe"], OVERRIDES["qwen3"] | {"moe": moe}, "qwen3")
    assert config.moe.batch_balance
    monkeypatch.setitem(flavors, "tiny", config)
    shapes = of_torchtitan("qwen3")
    tensors = saved({name: shapes[name] for name in shapes if "expert_bias" not in name}, tmp_path / "theirs")
    named = ["--model_name", "qwen3", "--model_flavor", "tiny", "--hf_assets_path", str(SHIPPED)]
    assert main(["convert", "to-hf", str(tmp_path / "theirs"), str(tmp_path / "hf"), *named]) == 0
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(exported["lm_head.weight"], tensors["output.weight"])
    prompt = ["--prompt", "def", "--max_new_tokens", "2"]
    assert main(["generate", "--checkpoint", str(tmp_path / "theirs"), *named, *prompt]) == 0
    assert "and as in a new model: layers.*.moe.load (2)" in caplog.text
