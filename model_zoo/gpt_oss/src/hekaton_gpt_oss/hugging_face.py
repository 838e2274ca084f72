"""gpt-oss as transformers' ``GptOssForCausalLM``: names and ``config.json``; the experts' matrices are
transposed there. As in all files, their biases are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Own, Transpose, WeightTable, entry
from hekaton_blocks import MoEConfig, RopeScaling
from hekaton_blocks.hugging_face import YARN_KEYS, number, rotary_of, whole
from hekaton_gpt_oss.model import ALPHA, GptOssConfig

CONTEXT = 131_072
"""Positions in the published ``config.json``."""

# Of transformers' GptOssConfig: what a config.json leaves out is this.
DEFAULTS = {
    "num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201_088, "hidden_size": 2_880,
    "intermediate_size": 2_880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "sliding_window": 128, "tie_word_embeddings": False, "hidden_act": "silu",
    "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "num_experts_per_tok": 4,
    "swiglu_alpha": ALPHA, "swiglu_limit": 7.0, "router_aux_loss_coef": 0.001, "attention_bias": True,
    "layer_types": None,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4_096,
    },
}  # fmt: skip
_THETA = 150_000.0
_KNOWN = {
    "tie_word_embeddings": (False,), "hidden_act": ("silu",), "swiglu_alpha": (ALPHA,),
    "attention_bias": (True,),
}  # fmt: skip


def table(config: GptOssConfig) -> WeightTable:
    """Names differ, and how the experts' matrices lie."""
    ours, theirs, moe = "layers.{i}.", "model.layers.{i}.", config.moe
    own = []
    if moe.bias_rate is not None:
        own.append(Own(name=f"{ours}moe.expert_bias", shape=(moe.n_experts,), value=0.0))
    if moe.batch_balance:
        own.append(Own(name=f"{ours}moe.load", shape=(moe.n_experts,), value=1.0, always=False))
    attention = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
    linear = {f"attention.{name}": f"self_attn.{there}" for name, there in attention.items()}
    linear["moe.router.gate"] = "mlp.router"
    experts = {"mlp1": "gate_up_proj", "mlp2": "down_proj"}
    return WeightTable(
        entries=[
            entry("tok_embeddings.weight", "model.embed_tokens.weight"),
            entry(f"{ours}attention_norm.weight", f"{theirs}input_layernorm.weight"),
            *(
                entry(f"{ours}{name}.{kind}", f"{theirs}{there}.{kind}")
                for name, there in linear.items()
                for kind in ("weight", "bias")
            ),
            entry(f"{ours}attention.sinks", f"{theirs}self_attn.sinks"),
            entry(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight"),
            *(
                entry(f"{ours}moe.experts.{name}_weight", f"{theirs}mlp.experts.{there}", Transpose())
                for name, there in experts.items()
            ),
            *(
                entry(f"{ours}moe.experts.{name}_bias", f"{theirs}mlp.experts.{there}_bias")
                for name, there in experts.items()
            ),
            entry("norm.weight", "model.norm.weight"),
            entry("output.weight", "lm_head.weight"),
        ],
        layers=config.n_layers,
        own=own,
    )


def write_config(config: GptOssConfig) -> dict[str, Any]:
    """The content of ``config.json``. Where more is known of the model that is exported, its positions and
    special tokens take the place of those here: the published model's, and none.

    :raises CheckpointError: for experts of another kind than transformers' model has.
    """
    moe, scaling = config.moe, config.rope_scaling
    plain = MoEConfig(
        n_experts=moe.n_experts,
        top_k=moe.top_k,
        hidden_dim=moe.hidden_dim,
        renormalise=True,
        bias_rate=moe.bias_rate,
        sequence_balance=moe.sequence_balance,
        batch_balance=moe.batch_balance,
    )
    if moe != plain:
        wrong = [f"{name} = {value!r}" for name, value in vars(moe).items() if value != vars(plain)[name]]
        raise CheckpointError(f"GptOssForCausalLM has no experts with {', '.join(wrong)}")
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        keys = {name: key for name, key in YARN_KEYS.items() if "mscale" not in name}
        rope = {"rope_type": "yarn", **{key: getattr(scaling, name) for name, key in keys.items()}}
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.window,
        "layer_types": _layer_types(config.n_layers),
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.hidden_dim,
        "router_aux_loss_coef": moe.batch_balance,
        "swiglu_alpha": ALPHA,
        "swiglu_limit": config.swiglu_limit,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": True,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _layer_types(n_layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n_layers)]


def read_config(content: Mapping[str, Any]) -> GptOssConfig:
    """The configuration that ``config.json`` describes.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    content = {"rope_theta": _THETA, **DEFAULTS, **content}
    layers = whole(content, "num_hidden_layers")
    known = _KNOWN | {"layer_types": (_layer_types(layers), None)}
    for key, values in known.items():
        if content[key] not in values:
            raise CheckpointError(f"{key} = {content[key]!r}: the model gpt_oss knows only {values[0]!r}")
    theta, scaling = rotary_of(content, model="gpt_oss", kinds=("default", "yarn"))
    assert not isinstance(scaling, RopeScaling)
    if scaling is not None and (scaling.mscale, scaling.mscale_all_dim) != (1.0, 0.0):
        raise CheckpointError("mscale: the model gpt_oss knows only YaRN's own factor")
    balance = content["router_aux_loss_coef"]
    return GptOssConfig(
        dim=whole(content, "hidden_size"),
        n_layers=layers,
        n_heads=whole(content, "num_attention_heads"),
        n_kv_heads=whole(content, "num_key_value_heads"),
        head_dim=whole(content, "head_dim"),
        window=whole(content, "sliding_window"),
        moe=MoEConfig(
            n_experts=whole(content, "num_local_experts"),
            top_k=whole(content, "num_experts_per_tok"),
            hidden_dim=whole(content, "intermediate_size"),
            renormalise=True,
            batch_balance=number(content, "router_aux_loss_coef") if balance else 0.0,
        ),
        vocab_size=whole(content, "vocab_size"),
        swiglu_limit=number(content, "swiglu_limit"),
        norm_eps=number(content, "rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
    )
