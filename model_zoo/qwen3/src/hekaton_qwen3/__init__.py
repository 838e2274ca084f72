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


@hookimpl
def hekaton_models() -> list[Model]:
    return [Model("qwen3", spec=Ref("hekaton_qwen3.spec:train_spec"), summary="Qwen 3, dense decoders")]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "qwen3",
            table=Ref("hekaton_qwen3.hugging_face:table"),
            write_config=Ref("hekaton_qwen3.hugging_face:write_config"),
            read_config=Ref("hekaton_qwen3.hugging_face:read_config"),
            architectures=("Qwen3ForCausalLM",),
            model_types=("qwen3",),
            defaults=QWEN3_DEFAULTS,
            summary="weights and config.json as transformers' Qwen3ForCausalLM",
        )
    ]
