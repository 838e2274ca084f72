"""Llama 3 against transformers' LlamaForCausalLM, on the same weights."""

from dataclasses import replace

import pytest
import torch

from hekaton.building import materialize
from hekaton.init import initialize, resolve_init
from hekaton_blocks import RopeScaling
from hekaton_llama3.hugging_face import table
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_transformers(variant, opened_by_transformers, assert_equal):
    model = build(VARIANTS[variant])
    theirs = opened_by_transformers("llama3", model)
    tokens = torch.randint(0, 101, (2, 48), generator=torch.Generator().manual_seed(0))
    assert_equal(model, theirs, table(model.config), tokens)


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(check_packing):
    check_packing(build(TINY), (7, 1, 12), within=1e-5)


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


def test_flops_are_those_that_torch_counts(counted_flops):
    seq = 64
    # torch counts the masked half of attention as well; ours does not.
    attention = 6 * TINY.n_layers * TINY.dim * seq
    assert counted_flops(build(TINY), seq) == pytest.approx(flops_per_token(TINY, seq) + attention, rel=1e-6)
