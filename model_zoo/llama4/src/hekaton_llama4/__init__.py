"""Llama 4 for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

HEKATON_API = ">=1,<2"

# Of transformers' Llama4TextConfig: what a config.json leaves out is this.
LLAMA4_DEFAULTS = {
    "vocab_size": 202_048, "hidden_size": 5_120, "intermediate_size": 8_192, "intermediate_size_mlp": 16_384,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "num_experts_per_tok": 1, "num_local_experts": 16, "moe_layers": None,
    "interleave_moe_layer_step": 1, "use_qk_norm": True, "router_aux_loss_coef": 0.001,
    "no_rope_layers": None, "no_rope_layer_interval": 4, "attention_chunk_size": 8_192, "layer_types": None,
    "attn_temperature_tuning": True, "floor_scale": 8_192, "attn_scale": 0.1, "attention_bias": False,
    "rope_theta": 500_000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "llama4",
            spec=Ref("hekaton_llama4.spec:train_spec"),
            summary="Llama 4 Scout and Maverick, the language models",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "llama4",
            table=Ref("hekaton_llama4.hugging_face:table"),
            write_config=Ref("hekaton_llama4.hugging_face:write_config"),
            read_config=Ref("hekaton_llama4.hugging_face:read_config"),
            architectures=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
            model_types=("llama4_text", "llama4"),
            defaults=LLAMA4_DEFAULTS,
            summary="weights and config.json as transformers' Llama4ForCausalLM, read also out of "
            "Llama4ForConditionalGeneration",
        )
    ]
