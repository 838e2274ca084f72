"""Llama 3 to and from transformers, through the command line: weights, config.json, logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hekaton.building import materialize
from hekaton.checkpoint import CheckpointManager
from hekaton.cli import main
from hekaton.init import initialize, resolve_init
from hekaton_blocks import RopeScaling
from hekaton_llama3.model import Llama3, Llama3Config
from hekaton_llama3.spec import flavors, init

TINY = Llama3Config(
    dim=64, n_layers=3, n_heads=4, n_kv_heads=2, hidden_dim=96, vocab_size=101, rope_theta=5_000.0
)
VARIANTS = {
    "tiny": TINY,
    "tied": replace(TINY, tie_embeddings=True),
    "scaled": replace(TINY, rope_scaling=RopeScaling(factor=8.0, original_context=32)),
}
TOKENS = torch.arange(96).reshape(2, 48) % 101


@pytest.fixture(autouse=True)
def _flavors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in VARIANTS.items():
        monkeypatch.setitem(flavors, name, config)


def build(config: Llama3Config) -> Llama3:
    with torch.device("meta"):
        model = Llama3(config)
    materialize(model, torch.device("cpu"))
    initialize(model, resolve_init(model, init(config), what="llama3"), seed=0)
    return model


def save(model: Llama3, folder: Path, flavor: str) -> Path:
    """As a run saves it, an optimizer's state beside the model."""
    tensors = dict(model.named_parameters())
    parts = {"model": tensors, "optimizer": {"norm.weight.step": torch.tensor(3.0)}}
    describe = {"model": "llama3", "flavor": flavor, "layout": {}, "config": {}}
    return CheckpointManager(folder / "checkpoint", describe=describe).save(3, parts, {})


def load(step: Path, config: Llama3Config) -> Llama3:
    """As a run that starts from ``step`` would, through torch's own reader."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    with torch.device("meta"):
        model = Llama3(config)
    materialize(model, torch.device("cpu"))
    dcp_load(dict(model.named_parameters()), storage_reader=FileSystemReader(step), no_dist=True)
    return model


def theirs(config: Llama3Config) -> LlamaForCausalLM:
    torch.manual_seed(1)
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is not None:
        rope |= {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim, num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads, intermediate_size=config.hidden_dim,
            vocab_size=config.vocab_size, rms_norm_eps=config.norm_eps, rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    out = model(TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_opened_by_transformers_and_comes_back_bit_for_bit(variant: str, tmp_path: Path) -> None:
    model = build(VARIANTS[variant])
    step = save(model, tmp_path, variant)
    assert main(["convert", "to-hf", str(step), str(tmp_path / "hf"), "--max_shard_size", "50KB"]) == 0
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(exported) is LlamaForCausalLM
    torch.testing.assert_close(logits_of(exported), logits_of(model), rtol=1e-5, atol=1e-5)

    back = tmp_path / "back"
    assert main(["convert_from_hf", str(tmp_path / "hf"), str(back), "--model_name", "llama3"]) == 0
    for name, parameter in load(back, VARIANTS[variant]).named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_transformers_is_imported_and_comes_back_bit_for_bit(variant: str, tmp_path: Path) -> None:
    reference = theirs(VARIANTS[variant])
    reference.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    out = tmp_path / "out"
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(out), "--model_flavor", variant]) == 0
    torch.testing.assert_close(
        logits_of(load(out, VARIANTS[variant])), logits_of(reference), rtol=1e-5, atol=1e-5
    )
    assert main(["convert_to_hf", str(out), str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    saved: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "hf").glob("*.safetensors"):
        saved |= load_file(file)
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())
