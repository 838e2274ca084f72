"""Mistakes that public implementations of such models made, put back in: each is noticed, with the layer's name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Llama4TextConfig

from hekaton.building import materialize
from hekaton.weights import whole
from hekaton_blocks import AttentionPattern, routing
from hekaton_llama4 import LLAMA4_DEFAULTS
from hekaton_llama4.hugging_face import read_config, table
from hekaton_llama4.model import Llama4, Llama4Config

TEXT = {
    "hidden_size": 32, "intermediate_size": 24, "intermediate_size_mlp": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 101,
    "num_local_experts": 8, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2,
    "attention_chunk_size": 6, "floor_scale": 4, "attn_scale": 0.5, "pad_token_id": None,
}  # fmt: skip
TOKENS = torch.randint(0, 101, (2, 40), generator=torch.Generator().manual_seed(0))
LENGTHS = (10, 3, 27)
THEIRS = {"attention": "self_attn", "moe": "feed_forward", "feed_forward": "feed_forward"}


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """Of transformers."""
    model = AutoModelForCausalLM.from_config(Llama4TextConfig(**TEXT), attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            low, high = (0.5, 1.5) if "norm" in name else (-0.5, 0.5)
            tensor.uniform_(low, high, generator=generator)
    return model


@pytest.fixture
def against_transformers(reference, outputs_of_layers, first_difference):
    def compare() -> str:
        model = ours(reference)
        names = {name: name for name in THEIRS}
        got = outputs_of_layers(model, list(model.layers.values()), names, TOKENS)
        return first_difference(
            got, outputs_of_layers(reference, list(reference.model.layers), THEIRS, TOKENS)
        )

    return compare


@pytest.fixture
def packed_against_alone(reference, outputs_of_layers, first_difference):
    def compare() -> str:
        model = ours(reference)
        layers, names = list(model.layers.values()), {name: name for name in THEIRS}
        positions = torch.cat([torch.arange(length) for length in LENGTHS])
        ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
        packed = outputs_of_layers(model, layers, names, TOKENS[:1], positions[None], ids[None])
        documents = TOKENS[:1].split(LENGTHS, dim=1)
        alone = [outputs_of_layers(model, layers, names, document) for document in documents]
        joined = {name: torch.cat([one[name].view(1, -1, 32) for one in alone], dim=1) for name in packed}
        return first_difference(packed, joined)

    return compare


def ours(reference: torch.nn.Module) -> Llama4:
    config = read_config({**LLAMA4_DEFAULTS, **TEXT})
    with torch.device("meta"):
        model = Llama4(config)
    materialize(model, torch.device("cpu"))
    theirs = {name: whole(tensor) for name, tensor in reference.state_dict().items()}
    tensors = table(config).from_hf(theirs, what="it")
    model.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    return model


def test_without_a_mistake_nothing_differs(against_transformers, packed_against_alone):
    assert against_transformers() == ""
    assert packed_against_alone() == ""


def boundaries_ignored(patch):
    """Chunks are counted in the row, through documents."""

    def regions(self, ids):
        if ids is None or self.chunk is None:
            return ids
        return (torch.arange(ids.shape[1]) // self.chunk).expand_as(ids)

    patch.setattr(AttentionPattern, "regions", regions)


def chunks_cut_documents_alone(patch):
    """Chunks are counted in the row, and a document's first tokens are in the chunk of the one before."""

    def regions(self, ids):
        if ids is None or self.chunk is None:
            return ids
        return torch.arange(ids.shape[1]) // self.chunk + len(LENGTHS) * 100 * ids

    patch.setattr(AttentionPattern, "regions", regions)


def weights_renormalised(patch):
    forward = routing.Router.forward

    def renormalised(self, x, expert_bias, *, even=False):
        found = forward(self, x, expert_bias, even=even)
        return found._replace(weights=found.weights / found.weights.sum(-1, keepdim=True))

    patch.setattr(routing.Router, "forward", renormalised)


def router_in_bf16(patch):
    def forward(self, x):
        return torch.nn.functional.linear(x.bfloat16(), self.weight.bfloat16()).float()

    patch.setattr(routing.Gate, "forward", forward)


def output_scaled(patch):
    """As in mixtures of experts whose weights scale what comes out."""
    made = routing.MoEConfig.__post_init__

    def post_init(self):
        made(self)
        object.__setattr__(self, "weights_on_input", False)

    patch.setattr(routing.MoEConfig, "__post_init__", post_init)


def other_layers_without_positions(patch):
    """Layer 0 of four instead of layer 3."""
    patch.setattr(Llama4Config, "has_positions", lambda self, layer: layer % 4 > 0)


def longer_chunks(patch):
    """A chunk has one token more."""
    patch.setattr(
        Llama4Config,
        "pattern",
        lambda self, layer: AttentionPattern(chunk=7 if self.has_positions(layer) else None),
    )


MISTAKES = {
    "document boundaries ignored in chunked attention": (
        boundaries_ignored, "packed_against_alone", "layers.0.attention",
    ),
    "chunks counted in the row": (chunks_cut_documents_alone, "packed_against_alone", "layers.0.attention"),
    "top-k weights renormalised": (weights_renormalised, "against_transformers", "layers.1.moe"),
    "router in bf16": (router_in_bf16, "against_transformers", "layers.1.moe"),
    "the output of an expert scaled": (output_scaled, "against_transformers", "layers.1.moe"),
    "another layer without positions": (other_layers_without_positions, "against_transformers", "layers.0.attention"),
    "chunks of one token more": (longer_chunks, "against_transformers", "layers.0.attention"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed_with_its_layer(mistake, request, monkeypatch):
    put_in, comparison, layer = MISTAKES[mistake]
    compare = request.getfixturevalue(comparison)
    put_in(monkeypatch)
    assert compare() == layer
