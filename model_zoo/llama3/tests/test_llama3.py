"""Llama 3 against transformers' LlamaForCausalLM, on the same weights."""

from dataclasses import replace

import pytest
import torch

from hekaton.build import materialize
from hekaton.init import initialize, resolve_init
from hekaton_blocks import RopeScaling
from hekaton_llama3.model import Llama3, Llama3Config
from hekaton_llama3.spec import flavors, flops_per_token, init, train_spec

TINY = Llama3Config(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=96, vocab_size=101, rope_theta=10_000.0
)
VARIANTS = {
    "plain": TINY,
    "tied": replace(TINY, tie_embeddings=True),
    "scaled": replace(TINY, rope_scaling=RopeScaling(factor=8.0, original_context=32)),
}


def build(config: Llama3Config, seed: int = 0) -> Llama3:
    with torch.device("meta"):
        model = Llama3(config)
    rows = resolve_init(model, init(config), what="llama3")
    materialize(model, torch.device("cpu"))
    initialize(model, rows, seed=seed)
    return model


def half_rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Meta's rows, pairs next to each other, in transformers' order: all first halves, then all second."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def reference(model: Llama3) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim, num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads, intermediate_size=config.hidden_dim,
            vocab_size=config.vocab_size, rms_norm_eps=config.norm_eps, rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings, max_position_embeddings=4096,
        )
    )  # fmt: skip
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
    state = {
        "model.embed_tokens.weight": model.tok_embeddings.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.output.weight,
    }
    for i, layer in model.layers.items():
        for ours, name in names.items():
            weight = layer.attention.get_submodule(ours).weight
            heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(ours)
            state[f"model.layers.{i}.self_attn.{name}.weight"] = (
                half_rotated(weight, heads) if heads else weight
            )
        for ours, name in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
            state[f"model.layers.{i}.mlp.{name}.weight"] = layer.feed_forward.get_submodule(ours).weight
        state[f"model.layers.{i}.input_layernorm.weight"] = layer.attention_norm.weight
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = layer.ffn_norm.weight
    theirs.load_state_dict(state)
    return theirs.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant):
    model = build(VARIANTS[variant])
    tokens = torch.randint(0, 101, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference(model)(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone():
    model = build(TINY)
    documents = [torch.randint(0, 101, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 1, 12)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    ids = torch.cat([torch.full((len(document),), i) for i, document in enumerate(documents)])
    with torch.no_grad():
        packed = model(torch.cat(documents)[None], positions[None], ids[None])
        alone = torch.cat([model(document[None]) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("flavor", "billions"), [("1B", 1.24), ("3B", 3.21), ("8B", 8.03), ("70B", 70.6), ("405B", 405.9)]
)
def test_published_sizes(flavor, billions):
    """Sizes as Meta's model cards give them (405B: counted from its config.json)."""
    with torch.device("meta"):
        model = Llama3(flavors[flavor])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=5e-3)
    assert train_spec.flavors[flavor].vocab_size == 128_256


def test_tied_embedding_is_one_parameter_after_materialising():
    model = build(VARIANTS["tied"])
    assert model.output.weight is model.tok_embeddings.weight
    assert "output.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_first_loss_is_near_that_of_a_uniform_guess(variant):
    tokens = torch.randint(0, 101, (4, 64), generator=torch.Generator().manual_seed(1))
    logits = build(VARIANTS[variant])(tokens)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(101.0).log().item(), abs=0.6)


def test_flops_are_those_that_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    seq = 64
    model, tokens = build(TINY), torch.zeros(1, seq, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    # torch counts the masked half of attention as well; ours does not.
    attention = 6 * TINY.n_layers * TINY.dim * seq
    assert counter.get_total_flops() / seq == pytest.approx(flops_per_token(TINY, seq) + attention, rel=1e-6)
