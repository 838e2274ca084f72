"""gpt-oss as transformers' ``GptOssForCausalLM``: names and ``config.json``; the experts' matrices are
transposed there. As in all files, their biases are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Transpose, WeightTable, entry
from hekaton_blocks import MoEConfig
from hekaton_blocks import hugging_face as hf
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
    experts = {"mlp1": "gate_up_proj", "mlp2": "down_proj"}
    biased = {name: there for name, there in hf.ATTENTION.items() if "norm" not in name}
    biased["moe.router.gate"] = "mlp.router"
    return WeightTable(
        entries=[
            *hf.decoder_entries(hf.ATTENTION | biased),
            *(entry(f"{hf.OURS}{name}.bias", f"{hf.THEIRS}{there}.bias") for name, there in biased.items()),
            entry(f"{hf.OURS}attention.sinks", f"{hf.THEIRS}self_attn.sinks"),
            *(
                entry(f"{hf.OURS}moe.experts.{name}_{kind}", f"{hf.THEIRS}mlp.experts.{there}{end}", *ops)
                for name, there in experts.items()
                for kind, end, ops in (("weight", "", [Transpose()]), ("bias", "_bias", []))
            ),
        ],
        layers=config.n_layers,
        own=hf.balance_tensors(config.moe),
    )


def write_config(config: GptOssConfig) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for experts of another kind than transformers' model has.
    """
    moe, scaling = config.moe, config.rope_scaling
    plain = MoEConfig(n_experts=moe.n_experts, top_k=moe.top_k, hidden_dim=moe.hidden_dim, renormalise=True)
    hf.check_experts(moe, vars(plain), architecture="GptOssForCausalLM")
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        keys = {name: key for name, key in hf.YARN_KEYS.items() if "mscale" not in name}
        rope = {"rope_type": "yarn", **{key: getattr(scaling, name) for name, key in keys.items()}}
    return {
        "architectures": ["GptOssForCausalLM"],
        **hf.decoder_content(config, model_type="gpt_oss", context=CONTEXT),
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "attention_bias": True,
        "rope_scaling": rope,
        "sliding_window": config.window,
        "layer_types": _layer_types(config.n_layers),
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.hidden_dim,
        "router_aux_loss_coef": moe.batch_balance,
        "swiglu_alpha": ALPHA,
        "swiglu_limit": config.swiglu_limit,
    }


def _layer_types(n_layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n_layers)]


def read_config(content: Mapping[str, Any]) -> GptOssConfig:
    """The configuration that ``config.json`` describes.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    content = {"rope_theta": _THETA, **DEFAULTS, **content}
    layers = _layer_types(hf.layer_count(content))
    hf.check_known(content, _KNOWN | {"layer_types": (layers, None)}, model="gpt_oss")
    fields = hf.decoder_fields(content, model="gpt_oss", kinds=("default", "yarn"))
    scaling = fields["rope_scaling"]
    if scaling is not None and (scaling.mscale, scaling.mscale_all_dim) != (1.0, 0.0):
        raise CheckpointError("mscale: the model gpt_oss knows only YaRN's own factor")
    return GptOssConfig(
        **fields,
        n_kv_heads=hf.whole(content, "num_key_value_heads"),
        head_dim=hf.whole(content, "head_dim"),
        window=hf.whole(content, "sliding_window"),
        moe=MoEConfig(
            n_experts=hf.whole(content, "num_local_experts"),
            top_k=hf.whole(content, "num_experts_per_tok"),
            hidden_dim=hf.whole(content, "intermediate_size"),
            renormalise=True,
            batch_balance=hf.optional_number(content, "router_aux_loss_coef", most=1e3),
        ),
        swiglu_limit=hf.number(content, "swiglu_limit"),
    )
