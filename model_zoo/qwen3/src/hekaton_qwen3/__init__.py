"""Qwen 3 for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

HEKATON_API = ">=1,<2"

# Of transformers' Qwen3Config: what a config.json leaves out is this.
QWEN3_DEFAULTS = {
    "vocab_size": 151_936,
    "hidden_size": 4_096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

# Of transformers' Qwen3MoeConfig, where it differs or has more; without head_dim it is hidden_size / heads.
QWEN3_MOE_DEFAULTS = {
    **QWEN3_DEFAULTS,
    "hidden_size": 2_048,
    "intermediate_size": 6_144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "head_dim": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_local_experts": 128,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}
_SHARED = {key: value for key, value in QWEN3_DEFAULTS.items() if QWEN3_MOE_DEFAULTS[key] == value}


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model("qwen3", spec=Ref("hekaton_qwen3.spec:train_spec"), summary="Qwen 3, dense and with experts")
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "qwen3",
            table=Ref("hekaton_qwen3.hugging_face:table"),
            write_config=Ref("hekaton_qwen3.hugging_face:write_config"),
            read_config=Ref("hekaton_qwen3.hugging_face:read_config"),
            architectures=("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
            model_types=("qwen3", "qwen3_moe"),
            defaults=_SHARED,
            summary="weights and config.json as transformers' Qwen3ForCausalLM and Qwen3MoeForCausalLM",
        )
    ]
