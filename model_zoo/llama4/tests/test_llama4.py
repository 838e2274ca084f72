"""Llama 4 against transformers' models, on the weights that these saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, Llama4TextConfig

from hekaton.building import materialize
from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError, ConfigError
from hekaton.plugins import Plugins
from hekaton.weights import whole
from hekaton.weights.counterpart import adapter_of, identify, read_config
from hekaton_llama4 import LLAMA4_DEFAULTS
from hekaton_llama4.hugging_face import table, write_config
from hekaton_llama4.model import Llama4, temperature_of
from hekaton_llama4.spec import flavors, flops_per_token

PLUGINS = Plugins.discover()

# What the published config.json files say of the language model.
SCOUT_TEXT = {
    "attention_bias": False, "attention_chunk_size": 8_192, "attention_dropout": 0.0, "attn_scale": 0.1,
    "attn_temperature_tuning": True, "bos_token_id": 200_000, "eos_token_id": 200_001, "floor_scale": 8_192,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5_120, "interleave_moe_layer_step": 1,
    "intermediate_size": 8_192, "intermediate_size_mlp": 16_384, "max_position_embeddings": 262_144,
    "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1,
    "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16, "pad_token_id": 200_018,
    "rms_norm_eps": 1e-05, "rope_theta": 500_000.0, "router_aux_loss_coef": 0.001,
    "rope_scaling": {
        "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8_192, "rope_type": "llama3",
    },
    "router_jitter_noise": 0.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_qk_norm": True,
    "vocab_size": 202_048,
}  # fmt: skip
MAVERICK_TEXT = {
    **SCOUT_TEXT, "interleave_moe_layer_step": 2, "moe_layers": list(range(1, 48, 2)), "use_qk_norm": False,
    "num_local_experts": 128, "rope_scaling": None, "max_position_embeddings": 1_048_576,
}  # fmt: skip
PUBLISHED = {"17bx16e": SCOUT_TEXT, "17bx128e": MAVERICK_TEXT}
OF_SEVERAL = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4"}

# Fewer of everything: a sequence of 48 tokens has several chunks and temperatures, and one pair of channels is
# stretched by the scaling.
SMALL = {
    "hidden_size": 48, "intermediate_size": 24, "intermediate_size_mlp": 96, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
    "num_local_experts": 8, "attention_chunk_size": 12, "floor_scale": 5, "attn_scale": 0.5,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
SCALING = SCOUT_TEXT["rope_scaling"] | {"original_max_position_embeddings": 64}
SCALED = {
    "Scout": {**SCOUT_TEXT, **SMALL, "rope_scaling": SCALING},
    "Maverick": {**MAVERICK_TEXT, **SMALL, "moe_layers": [1, 3]},
    "two experts of a token": {**SCOUT_TEXT, **SMALL, "rope_scaling": None, "num_experts_per_tok": 2},
    "dense": {**SCOUT_TEXT, **SMALL, "rope_scaling": None, "moe_layers": [], "attention_chunk_size": None},
}


@pytest.fixture(scope="module")
def adapter() -> HFAdapter:
    return adapter_of(PLUGINS, "llama4")


def theirs(content: dict) -> torch.nn.Module:
    """Their model, with weights that no part of it can be left out of without a difference."""
    config = Llama4TextConfig(**{key: value for key, value in content.items() if key != "torch_dtype"})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.2, generator=generator)


def tokens(length: int = 48) -> torch.Tensor:
    return torch.randint(0, 101, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", SCALED)
def test_logits_and_gradients_are_those_of_transformers(variant, adapter, from_files, assert_equal, tmp_path):
    reference = theirs(SCALED[variant])
    reference.save_pretrained(tmp_path)
    model = from_files("llama4", tmp_path)
    assert model.config == read_config(adapter, SCALED[variant], what="it")
    assert_equal(model, reference, table(model.config), tokens())


MECHANISMS = {
    "chunks": {"attention_chunk_size": None},
    "longer chunks": {"attention_chunk_size": 13},
    "layers without positions": {"every_n_layers_nope": 0},
    "other layers without positions": {"every_n_layers_nope": 3},
    "temperature": {"attn_scale": 0.0},
    "another floor of the temperature": {"floor_scale": 6},
    "norm of queries and keys": {"qk_norm": False},
    "scaling of positions": {"rope_scaling": None},
}


@pytest.mark.parametrize("mechanism", [*MECHANISMS, "scaled input", "shared expert"])
def test_each_mechanism_matters_to_the_comparison(mechanism, from_files, tmp_path):
    """Without one of them, or with another value, the logits are not those of transformers."""
    reference = theirs(SCALED["Scout"])
    reference.save_pretrained(tmp_path)
    model = from_files("llama4", tmp_path)
    other = Llama4(replace(model.config, **MECHANISMS.get(mechanism, {})))
    other.load_state_dict(model.state_dict())
    for layer in other.layers.values():
        if mechanism == "scaled input":
            layer.moe.config = replace(layer.moe.config, weights_on_input=False)
        if mechanism == "shared expert":
            layer.moe.shared_experts = None
    with torch.no_grad():
        expected = reference(tokens()).logits
        assert (model(tokens()) - expected).norm() <= 1e-5 * expected.norm()
        assert (other(tokens()) - expected).norm() > 1e-2 * expected.norm()


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(from_files, check_packing, tmp_path):
    """Its chunks are counted from its first token, and so is its temperature."""
    theirs(SCALED["Scout"]).save_pretrained(tmp_path)
    check_packing(from_files("llama4", tmp_path), (7, 1, 30))


def test_temperature_by_hand():
    """1 + 0.1 ln(1 + floor((p + 1) / 4)) at p = 0, 2, 3, 6, 7."""
    got = temperature_of(torch.tensor([[0, 2, 3, 6, 7]]), 0.1, 4)
    assert got.shape == (1, 5, 1, 1)
    assert got.flatten().tolist() == pytest.approx([1, 1, 1.0693147, 1.0693147, 1.1098612])


@pytest.mark.parametrize(
    ("flavor", "total", "active"),
    [("17bx16e", 107_769_861_120, 17_172_894_720), ("17bx128e", 400_711_848_960, 17_184_691_200)],
)
def test_published_sizes_names_and_shapes(flavor, total, active, adapter):
    """The language model of transformers' model of the published config.json has the same tensors."""
    content = {
        **OF_SEVERAL,
        "text_config": PUBLISHED[flavor],
        "vision_config": {"model_type": "llama4_vision_model"},
    }
    config = read_config(adapter, content, what="it")
    assert config == flavors[flavor] == flavors[f"{flavor}_irope"]
    assert identify(PLUGINS, content, model=None, flavor=None, what="it").flavor == flavor
    with torch.device("meta"):
        model = Llama4(config)
        reference = AutoModelForCausalLM.from_config(
            Llama4TextConfig(
                **{key: value for key, value in PUBLISHED[flavor].items() if key != "torch_dtype"}
            )
        )
    assert sum(p.numel() for p in model.parameters()) == total
    experts = sum(p.numel() for name, p in model.named_parameters() if ".moe.experts." in name)
    assert total - experts * (1 - config.moe.top_k / config.moe.n_experts) == active
    there = table(config).to_hf({name: whole(one) for name, one in model.state_dict().items()}, what="it")
    expected = {name: tuple(one.shape) for name, one in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in there.items()} == expected
    # By hand, of the published index: the experts of a layer are two tensors, transposed, without ".weight".
    n = config.moe.n_experts
    of_layer = {
        "feed_forward.experts.gate_up_proj": (n, 5_120, 16_384),
        "feed_forward.experts.down_proj": (n, 8_192, 5_120),
        "feed_forward.router.weight": (n, 5_120),
        "feed_forward.shared_expert.gate_proj.weight": (8_192, 5_120),
        "self_attn.q_proj.weight": (5_120, 5_120),
        "self_attn.k_proj.weight": (1_024, 5_120),
    }
    assert (
        of_layer.items()
        <= {name.removeprefix("model.layers.1."): shape for name, shape in expected.items()}.items()
    )
    assert len(expected) == {"17bx16e": 48 * 12 + 3, "17bx128e": 24 * 12 + 24 * 9 + 3}[flavor]
    named = [f"language_model.{name}" for name in expected]
    assert table(config).own_names(named, what="it") == {
        name.removeprefix("language_model."): name for name in named
    }


def test_torchtitans_names():
    """Of a debug model that is balanced by a bias, written out by hand from torchtitan's modules."""
    config = flavors["debugmodel"]
    config = replace(config, moe=replace(config.moe, bias_rate=1e-3, batch_balance=0.0))
    with torch.device("meta"):
        got = {name: tuple(tensor.shape) for name, tensor in Llama4(config).state_dict().items()}
    expected = {"tok_embeddings.weight": (2_048, 256), "norm.weight": (256,), "output.weight": (2_048, 256)}
    for layer in range(6):
        names = {f"attention.{name}.weight": (256, 256) for name in ("wq", "wk", "wv", "wo")}
        names |= {f"{name}.weight": (256,) for name in ("attention_norm", "ffn_norm")}
        if layer % 2:
            names |= {
                "moe.experts.w1": (8, 512, 256), "moe.experts.w2": (8, 256, 512), "moe.experts.w3": (8, 512, 256),
                "moe.router.gate.weight": (8, 256), "moe.expert_bias": (8,),
                "moe.shared_experts.w1.weight": (512, 256), "moe.shared_experts.w2.weight": (256, 512),
                "moe.shared_experts.w3.weight": (512, 256),
            }  # fmt: skip
        else:
            names |= {f"feed_forward.{name}.weight": (768, 256) for name in ("w1", "w3")}
            names["feed_forward.w2.weight"] = (256, 768)
        expected |= {f"layers.{layer}.{name}": shape for name, shape in names.items()}
    assert got == expected


@pytest.mark.parametrize("seq", [48, 150])
def test_flops_are_those_that_torch_counts(seq, counted_flops):
    config = flavors["debugmodel"]
    with torch.device("meta"):
        model = Llama4(config)
    materialize(model, torch.device("cpu"))
    fill(model)
    # torch counts the masked half of attention as well; ours does not. Of 150 tokens, 64 + 64 + 22 are in chunks.
    pairs = 5 * (48**2 if seq == 48 else 64**2 + 64**2 + 22**2) + seq**2
    attention = 6 * config.n_heads * config.head_dim * pairs / seq
    assert counted_flops(model, seq) == pytest.approx(flops_per_token(config, seq) + attention, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "message"), [({"n_kv_heads": 3}, "does not divide"), ({"head_dim": 15}, "is odd")]
)
def test_impossible_heads_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(flavors["debugmodel"], **change)


def test_the_defaults_are_those_of_transformers():
    content = Llama4TextConfig().to_dict()
    content["rope_theta"] = content["rope_parameters"]["rope_theta"]
    made_up = {"moe_layers", "no_rope_layers", "layer_types"}  # lists, from the intervals
    assert {key: content[key] for key in LLAMA4_DEFAULTS if key not in made_up} == {
        key: value for key, value in LLAMA4_DEFAULTS.items() if key not in made_up
    }


def test_lists_and_intervals_of_layers_are_read_alike(adapter):
    """As transformers, which keeps lists, makes them of intervals."""
    for interval, step in [(4, 1), (2, 2), (3, 3), (5, 4)]:
        said = {
            "no_rope_layer_interval": interval,
            "interleave_moe_layer_step": step,
            "num_hidden_layers": 12,
        }
        kept = Llama4TextConfig(**said).to_dict()
        got = read_config(adapter, {"model_type": "llama4_text", **said}, what="it")
        assert got == read_config(adapter, kept, what="it")
        assert [int(got.has_positions(i)) for i in range(12)] == kept["no_rope_layers"]
        assert list(got.layers_with_experts) == kept["moe_layers"]
    written = write_config(read_config(adapter, {**SCALED["dense"], "no_rope_layers": [1] * 5}, what="it"))
    assert (written["moe_layers"], written["no_rope_layers"]) == ([], [1] * 5)
    assert read_config(adapter, written, what="it").every_n_layers_nope == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True: the model llama4 knows only False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True: the model llama4 knows only False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn': the model llama4 knows only"),
        ({"moe_layers": [1, 2]}, r"moe_layers = \[1, 2\]: the model llama4 has experts in each n-th layer"),
        ({"no_rope_layers": [0, *[1] * 47]}, "in the model llama4 each n-th layer is without positions"),
        ({"layer_types": ["full_attention"] * 48}, "the layers with positions attend inside chunks"),
        ({"num_experts_per_tok": 17}, "top_k = 17 is more than n_experts = 16"),
        ({"floor_scale": 0}, "floor_scale = 0: a whole number above 0"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused(adapter, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(adapter, {**SCOUT_TEXT, **content}, what="it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_on_input": False}, "moe.weights_on_input = False, there it is True"),
        ({"score": "softmax"}, "moe.score = 'softmax', there it is 'sigmoid'"),
        ({"n_shared_experts": 0}, "moe.n_shared_experts = 0, there it is 1"),
    ],
)
def test_routing_that_transformers_does_not_have_is_not_exported(changes, message):
    config = flavors["debugmodel"]
    with pytest.raises(CheckpointError, match="does not compute what this model does") as error:
        write_config(replace(config, moe=replace(config.moe, **changes)))
    assert message in error.value.hint
