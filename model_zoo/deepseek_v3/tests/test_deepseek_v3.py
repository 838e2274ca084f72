"""DeepSeek V3 and V2 against transformers' models, on the weights that these saved."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError, ConfigError
from hekaton.plugins import Plugins
from hekaton.weights import whole
from hekaton.weights.counterpart import Counterpart, adapter_of, read_config
from hekaton.weights.facts import SpecialTokens
from hekaton.weights.format import Weights
from hekaton_deepseek_v3.hugging_face import V2_DEFAULTS, V3_DEFAULTS, table, write_config
from hekaton_deepseek_v3.model import DeepSeekV3
from hekaton_deepseek_v3.spec import flavors, flops_per_token, train_spec

PLUGINS = Plugins.discover()
CONTEXT = 163_840

# What the published config.json files say of the architecture.
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7_168, "intermediate_size": 18_432,
    "kv_lora_rank": 512, "max_position_embeddings": CONTEXT, "moe_intermediate_size": 2_048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1_536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "rope_theta": 10_000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4_096, "type": "yarn",
    },
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "v_head_dim": 128, "vocab_size": 129_280, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
V2 = {
    **V3, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "first_k_dense_replace": 1,
    "hidden_size": 5_120, "intermediate_size": 12_288, "moe_intermediate_size": 1_536, "n_routed_experts": 160,
    "n_shared_experts": 2, "norm_topk_prob": False, "num_experts_per_tok": 6, "num_hidden_layers": 60,
    "rope_scaling": V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0, "scoring_func": "softmax", "topk_group": 3,
    "topk_method": "group_limited_greedy", "vocab_size": 102_400,
}  # fmt: skip
LITE = {
    **V2, "hidden_size": 2_048, "intermediate_size": 10_944, "moe_intermediate_size": 1_408, "n_group": 1,
    "n_routed_experts": 64, "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "q_lora_rank": None, "routed_scaling_factor": 1.0, "topk_group": 1, "topk_method": "greedy",
}  # fmt: skip
PUBLISHED = {"16B": LITE, "236B": V2, "671B": V3}

# Fewer of everything, and positions that YaRN stretches, mixes and keeps.
SMALL = {
    "hidden_size": 48, "intermediate_size": 96, "moe_intermediate_size": 24, "num_hidden_layers": 3,
    "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "vocab_size": 101,
    "max_position_embeddings": 1_280,
}  # fmt: skip
SCALED = {
    "V3": {**V3, **SMALL, "q_lora_rank": 24, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "V2": {**V2, **SMALL, "q_lora_rank": 24, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "V2-Lite": {**LITE, **SMALL, "n_routed_experts": 8, "num_experts_per_tok": 3},
    "dense": {**V3, **SMALL, "q_lora_rank": 24, "first_k_dense_replace": 3},
}  # fmt: skip
for _content in SCALED.values():
    _content["rope_scaling"] = _content["rope_scaling"] | {"original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def adapter() -> HFAdapter:
    return adapter_of(PLUGINS, "deepseek_v3")


def theirs(content: dict) -> torch.nn.Module:
    """Their model, with weights that no part of it can be left out of without a difference."""
    config = AutoConfig.for_model(**{key: value for key, value in content.items() if key != "torch_dtype"})
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif "bias" in name:
                tensor.uniform_(-0.2, 0.2, generator=generator)
            elif "inv_freq" not in name:
                tensor.normal_(0, 0.2, generator=generator)
    return model


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What transformers has in memory under the names of the published files, which have each expert apart."""
    apart = {}
    for name, tensor in state.items():
        prefix, _, packed = name.rpartition(".")
        if packed == "gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                apart |= {
                    f"{prefix}.{expert}.gate_proj.weight": gate,
                    f"{prefix}.{expert}.up_proj.weight": up,
                }
        elif packed == "down_proj":
            apart |= {f"{prefix}.{expert}.down_proj.weight": one for expert, one in enumerate(tensor)}
        else:
            apart[name] = tensor
    return apart


def tokens(length: int = 48) -> torch.Tensor:
    return torch.randint(0, 101, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", SCALED)
def test_logits_and_gradients_are_those_of_transformers(variant, adapter, from_files, assert_equal, tmp_path):
    reference = theirs(SCALED[variant])
    reference.save_pretrained(tmp_path)
    model = from_files("deepseek_v3", tmp_path)
    assert model.config == read_config(adapter, SCALED[variant], what="it")
    assert_equal(model, reference, table(model.config), tokens(), stored=published_names)


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(from_files, check_packing, tmp_path):
    theirs(SCALED["V3"]).save_pretrained(tmp_path)
    check_packing(from_files("deepseek_v3", tmp_path), (7, 1, 12))


@pytest.mark.parametrize(
    ("flavor", "total", "active"),
    [
        ("16B", 15_706_484_224, 2_661_150_208),
        ("236B", 235_741_434_880, 21_375_800_320),
        ("671B", 671_026_404_352, 37_552_282_624),
    ],
)
def test_published_sizes_names_and_shapes(flavor, total, active, adapter):
    """Transformers' model of the published config.json has the same tensors, under the published names."""
    config = read_config(adapter, PUBLISHED[flavor], what="it")
    assert config == flavors[flavor]
    with torch.device("meta"):
        model = DeepSeekV3(config)
        reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED[flavor]))
    assert sum(p.numel() for p in model.parameters()) == total
    experts = sum(p.numel() for name, p in model.named_parameters() if ".moe.experts." in name)
    assert total - experts * (1 - config.moe.top_k / config.moe.n_experts) == active
    there = table(config).to_hf({name: whole(one) for name, one in model.state_dict().items()}, what="it")
    expected = {name: tuple(one.shape) for name, one in published_names(reference.state_dict()).items()}
    assert {name: tensor.shape for name, tensor in there.items()} == expected


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config, seq = flavors["debugmodel"], 64
    with torch.device("meta"):
        model, ids = DeepSeekV3(config), torch.zeros(1, seq, dtype=torch.long)
    experts = config.moe
    for layer in model.layers.values():
        if (
            layer.moe is not None
        ):  # on the meta device no token has an expert: as many products, one after the other
            layer.moe.forward = products_of(layer.moe, experts)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    # torch counts the masked half of attention as well; ours does not.
    channels = (config.qk_head_dim + config.v_head_dim) / 2
    attention = 6 * config.n_layers * config.n_heads * channels * seq
    assert counter.get_total_flops() / seq == pytest.approx(
        flops_per_token(config, seq) + attention, rel=0.02
    )


def products_of(moe, experts):
    def forward(x):
        logits = moe.router.gate(x)
        out = moe.shared_experts(x) + logits.sum()
        for expert in range(experts.top_k):
            w1, w2, w3 = (weight[expert] for weight in (moe.experts.w1, moe.experts.w2, moe.experts.w3))
            out = out + torch.nn.functional.silu(x @ w1.T) * (x @ w3.T) @ w2.T
        return out

    return forward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim = 7 is odd"),
        ({"n_dense_layers": 7}, "n_dense_layers = 7 of n_layers = 6"),
        ({"moe": None}, "layers from 1 on have experts, and moe does not say which"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(flavors["debugmodel"], **change)


@pytest.mark.parametrize(
    ("model_type", "defaults"), [("deepseek_v3", V3_DEFAULTS), ("deepseek_v2", V2_DEFAULTS)]
)
def test_the_defaults_are_those_of_transformers(model_type, defaults):
    content = AutoConfig.for_model(model_type).to_dict()
    content["rope_theta"] = content["rope_parameters"]["rope_theta"]
    content["num_key_value_heads"] = defaults["num_key_value_heads"]  # made up from the heads there
    assert {key: content[key] for key in defaults} == defaults


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2"])
def test_positions_and_special_tokens_that_a_file_leaves_out_are_those_of_transformers(model_type, adapter):
    theirs = AutoConfig.for_model(model_type)
    counterpart = Counterpart(spec=train_spec, flavor="16B", config=flavors["16B"], adapter=adapter)
    facts = counterpart.facts_of(Weights(config={"model_type": model_type}, tensors={}))
    assert facts.positions == theirs.max_position_embeddings
    expected = SpecialTokens(bos_id=theirs.bos_token_id, eos_ids=(theirs.eos_token_id,))
    assert facts.tokens == expected


@pytest.mark.parametrize("base", [V3, LITE])
def test_what_transformers_reads_is_read_alike(base, adapter):
    values = {
        "vocab_size": [2_000], "hidden_size": [96], "intermediate_size": [96], "num_hidden_layers": [7],
        "first_k_dense_replace": [2], "num_attention_heads": [16], "q_lora_rank": [None, 64],
        "rms_norm_eps": [1e-5], "rope_theta": [20_000.0], "qk_nope_head_dim": [32], "v_head_dim": [24],
        "qk_rope_head_dim": [16], "n_shared_experts": [3], "num_experts_per_tok": [4],
        "routed_scaling_factor": [1.5], "moe_intermediate_size": [40], "kv_lora_rank": [40],
    }  # fmt: skip
    fields = {
        "vocab_size": "vocab_size", "hidden_size": "dim", "intermediate_size": "inter_dim",
        "num_hidden_layers": "n_layers", "first_k_dense_replace": "n_dense_layers",
        "num_attention_heads": "n_heads", "q_lora_rank": "q_lora_rank", "rms_norm_eps": "norm_eps",
        "qk_nope_head_dim": "qk_nope_head_dim", "v_head_dim": "v_head_dim", "kv_lora_rank": "kv_lora_rank",
        "qk_rope_head_dim": "qk_rope_head_dim",
    }  # fmt: skip
    routing = {
        "n_shared_experts": "n_shared_experts", "num_experts_per_tok": "top_k",
        "routed_scaling_factor": "route_scale", "moe_intermediate_size": "hidden_dim",
        "n_routed_experts": "n_experts",
    }  # fmt: skip
    chance = random.Random(0)
    for _ in range(60):
        content = {key: value for key, value in base.items() if chance.random() < 0.8 or key == "model_type"}
        content |= {key: chance.choice(of) for key, of in values.items() if chance.random() < 0.4}
        content["num_attention_heads"] = content["num_key_value_heads"] = content.get(
            "num_attention_heads", 16
        )
        content["num_experts_per_tok"] = content.get("num_experts_per_tok", 6)
        expected = AutoConfig.for_model(**content)
        got = read_config(adapter, content, what="it")
        assert {name: getattr(got, name) or None for name in fields.values()} == {
            name: getattr(expected, key) or None for key, name in fields.items()
        }, content
        assert {name: getattr(got.moe, name) for name in routing.values()} == {
            name: getattr(expected, key) for key, name in routing.items()
        }, content
        rope = expected.rope_parameters
        assert got.rope_theta == rope["rope_theta"]
        assert (got.rope_scaling is None) == (rope["rope_type"] == "default")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True: the model deepseek_v3 knows only False"),
        ({"moe_layer_freq": 2}, "moe_layer_freq = 2: the model deepseek_v3 knows only 1"),
        ({"num_key_value_heads": 8}, "num_key_value_heads = 8: the model deepseek_v3 knows only 128"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax': the model deepseek_v3 knows only 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy': the model deepseek_v3 knows only 'noaux_tc'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear': the model deepseek_v3 knows"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "of mscale and mscale_all_dim there must"),
        ({"n_group": 7}, "n_groups = 7 does not divide n_experts = 256"),
        ({"topk_group": 9}, "n_limited_groups = 9 is more than n_groups = 8"),
        ({"num_experts_per_tok": 300}, "top_k = 300 is more than n_experts = 256"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace = -1: a whole number of at least 0"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused(adapter, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(adapter, {**V3, **content}, what="it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "softmax"}, "moe.renormalise = True, there it is False"),
        ({"bias_rate": None}, "moe.bias_rate = None, there is a bias"),
        ({"n_shared_experts": 0}, "moe.n_shared_experts = 0, there it is 1"),
    ],
)
def test_routing_that_transformers_does_not_have_is_not_exported(changes, message):
    config = flavors["debugmodel"]
    with pytest.raises(CheckpointError, match="does not compute what this model does") as error:
        write_config(replace(config, moe=replace(config.moe, **changes)))
    assert message in error.value.hint
