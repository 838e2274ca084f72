"""Llama 3 for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

HEKATON_API = ">=1,<2"

# Of transformers' LlamaConfig: what a config.json leaves out is this.
LLAMA_DEFAULTS = {
    "vocab_size": 32_000, "hidden_size": 4_096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2_048, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "llama3",
            spec=Ref("hekaton_llama3.spec:train_spec"),
            summary="Llama 3, 3.1 and 3.2, dense decoders",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "llama3",
            table=Ref("hekaton_llama3.hugging_face:table"),
            write_config=Ref("hekaton_llama3.hugging_face:write_config"),
            read_config=Ref("hekaton_llama3.hugging_face:read_config"),
            architectures=("LlamaForCausalLM",),
            model_types=("llama",),
            defaults=LLAMA_DEFAULTS,
            summary="weights and config.json as transformers' LlamaForCausalLM",
        )
    ]
