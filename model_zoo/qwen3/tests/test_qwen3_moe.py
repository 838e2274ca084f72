"""Qwen 3 with experts against transformers' Qwen3MoeForCausalLM: logits, gradients, files, published sizes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from transformers import Qwen3MoeConfig as TheirConfig
from transformers import Qwen3MoeForCausalLM

from hekaton.building import materialize
from hekaton.cli import main
from hekaton.errors import CheckpointError
from hekaton.init import initialize, resolve_init
from hekaton.weights import whole
from hekaton_blocks import MoEConfig
from hekaton_qwen3 import QWEN3_MOE_DEFAULTS
from hekaton_qwen3.hugging_face import read_config, table, write_config
from hekaton_qwen3.model import Qwen3, Qwen3Config
from hekaton_qwen3.spec import flavors, flops_per_token, init

EXPERTS = MoEConfig(n_experts=8, top_k=3, hidden_dim=24, renormalise=True, batch_balance=1e-3)
TINY = Qwen3Config(
    dim=48, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=101,
    rope_theta=10_000.0, moe=EXPERTS,
)  # fmt: skip
TOKENS = torch.randint(0, 101, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _flavors(monkeypatch):
    monkeypatch.setitem(flavors, "tiny_moe", TINY)


def build(config: Qwen3Config) -> Qwen3:
    with torch.device("meta"):
        model = Qwen3(config)
    materialize(model, torch.device("cpu"))
    initialize(model, resolve_init(model, init(config), what="qwen3"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with (
        torch.no_grad()
    ):  # norms that are all ones, and logits of routers that are all small, would hide faults
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            if "router" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return model


def experts_apart(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What transformers has in memory under the names of files, which have each expert apart."""
    apart = {}
    for name, tensor in gradients.items():
        prefix, _, packed = name.rpartition(".")
        for expert in range(EXPERTS.n_experts if packed in ("gate_up_proj", "down_proj") else 0):
            both = tensor[expert].chunk(2) if packed == "gate_up_proj" else [tensor[expert]]
            names = ("gate_proj", "up_proj") if packed == "gate_up_proj" else ("down_proj",)
            apart |= {f"{prefix}.{expert}.{one}.weight": part for one, part in zip(names, both, strict=True)}
        if packed not in ("gate_up_proj", "down_proj"):
            apart[name] = tensor
    return apart


def test_logits_and_gradients_are_those_of_transformers(opened_by_transformers, assert_equal):
    model = build(TINY)
    theirs = opened_by_transformers("qwen3", model)
    assert type(theirs) is Qwen3MoeForCausalLM
    assert_equal(model, theirs, table(TINY), TOKENS, stored=experts_apart)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_files_of_transformers_come_in_and_go_out_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    content = {key: value for key, value in write_config(TINY).items() if key != "architectures"}
    Qwen3MoeForCausalLM(TheirConfig.from_dict(content)).save_pretrained(
        tmp_path / "hf", max_shard_size="50KB"
    )
    assert (
        main(
            ["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "out"), "--model_flavor", "tiny_moe"]
        )
        == 0
    )
    with torch.device("meta"):
        model = Qwen3(TINY)
    materialize(model, torch.device("cpu"))
    model.layers["0"].moe.load.fill_(7.0)
    dcp_load(model.state_dict(), storage_reader=FileSystemReader(tmp_path / "out"), no_dist=True)
    assert model.layers["0"].moe.load.tolist() == [1.0] * 8
    assert main(["convert", "to-hf", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    saved = {}
    for file in (tmp_path / "hf").glob("*.safetensors"):
        saved |= load_file(file)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())
    assert "model.layers.2.mlp.experts.7.gate_proj.weight" in saved


def test_an_expert_bias_that_has_moved_has_no_place_there():
    config = replace(TINY, moe=replace(EXPERTS, bias_rate=1e-3))
    model = build(config)
    lazy = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    assert "model.layers.0.mlp.gate.weight" in table(config).to_hf(lazy, what="it")
    model.layers["1"].moe.expert_bias[3] = 1e-3
    with pytest.raises(CheckpointError, match=r"'layers.1.moe.expert_bias' is not 0 everywhere"):
        table(config).to_hf(lazy, what="it")


@pytest.mark.parametrize(
    ("flavor", "total", "active"),
    [("30B-A3B", 30_532_122_624, 3_353_032_704), ("235B-A22B", 235_093_634_560, 22_190_763_520)],
)
def test_published_sizes_and_names(flavor, total, active):
    """As transformers counts the published configurations; active are all but the experts not chosen. Names and
    shapes are those of the published files."""
    config = flavors[flavor]
    with torch.device("meta"):
        model = Qwen3(config)
    assert sum(p.numel() for p in model.parameters()) == total
    each = 3 * config.dim * config.moe.hidden_dim
    assert total - config.n_layers * (config.moe.n_experts - config.moe.top_k) * each == active

    def layer(i: int) -> dict[str, tuple[int, ...]]:
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        heads, keys, dim = config.n_heads * 128, 4 * 128, config.dim
        return {
            f"{attention}.q_proj.weight": (heads, dim), f"{attention}.k_proj.weight": (keys, dim),
            f"{attention}.v_proj.weight": (keys, dim), f"{attention}.o_proj.weight": (dim, heads),
            f"{attention}.q_norm.weight": (128,), f"{attention}.k_norm.weight": (128,),
            f"model.layers.{i}.input_layernorm.weight": (dim,),
            f"model.layers.{i}.post_attention_layernorm.weight": (dim,), f"{mlp}.gate.weight": (128, dim),
        } | {
            f"{mlp}.experts.{e}.{name}.weight": (dim, config.moe.hidden_dim) if name == "down_proj" else (config.moe.hidden_dim, dim)
            for e in range(128) for name in ("gate_proj", "up_proj", "down_proj")
        }  # fmt: skip

    published = {
        "model.embed_tokens.weight": (151_936, config.dim), "model.norm.weight": (config.dim,),
        "lm_head.weight": (151_936, config.dim),
    }  # fmt: skip
    for i in range(config.n_layers):
        published |= layer(i)
    theirs = table(config).to_hf({name: whole(t) for name, t in model.state_dict().items()}, what=flavor)
    assert {name: tensor.shape for name, tensor in theirs.items()} == published


def test_flops_are_those_that_torch_counts(counted_flops):
    seq = 64
    # torch counts the masked half of attention as well; ours does not.
    attention = 6 * TINY.n_layers * TINY.n_heads * TINY.head_dim * seq
    assert counted_flops(build(TINY), seq) == pytest.approx(flops_per_token(TINY, seq) + attention, rel=1e-6)


def test_what_transformers_reads_is_read_alike():
    theirs = TheirConfig().to_dict()
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    theirs["head_dim"] = None  # transformers takes hidden_size / heads
    assert {key: theirs[key] for key in QWEN3_MOE_DEFAULTS} == QWEN3_MOE_DEFAULTS
    written = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 64}
    assert read_config(written).moe.n_experts == TheirConfig.from_dict(dict(written)).num_experts == 64
    since_5 = {"model_type": "qwen3_moe", "num_local_experts": 32}
    assert read_config(since_5).moe.n_experts == TheirConfig.from_dict(dict(since_5)).num_experts == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]: the model qwen3 knows only \[\]"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ({"num_experts": 0}, "num_experts = 0: a whole number above 0"),
    ],
)
def test_what_the_model_cannot_do_is_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        read_config({"model_type": "qwen3_moe", **content})
