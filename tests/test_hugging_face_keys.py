"""No value of a ``config.json`` that changes what transformers computes is ignored."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hekaton.errors import HekatonError
from hekaton.plugins import Plugins
from hekaton.weights.counterpart import adapter_of, read_config

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LATENT = SIZES | {
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 12,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA4 = {
    "num_local_experts": 4, "intermediate_size_mlp": 40, "attention_chunk_size": 5, "floor_scale": 4,
    "interleave_moe_layer_step": 2,
}  # fmt: skip
MODELS = {
    "llama": ("llama3", "LlamaForCausalLM", GROUPED),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", GROUPED),
    "qwen3_moe": ("qwen3", "Qwen3MoeForCausalLM", GROUPED | EXPERTS),
    "gpt_oss": ("gpt_oss", "GptOssForCausalLM", GROUPED | EXPERTS | {"sliding_window": 5}),
    "llama4_text": ("llama4", "Llama4ForCausalLM", GROUPED | LLAMA4),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3ForCausalLM", LATENT),
    "deepseek_v2": ("deepseek_v3", "DeepseekV2ForCausalLM", LATENT | {"topk_method": "group_limited_greedy"}),
}
OF_FILES = {"model_type", "architectures", "transformers_version", "dtype", "id2label", "label2id"}


def computed(content: dict[str, Any]) -> list[torch.Tensor]:
    """Logits of transformers' model with weights that its tensors' names and shapes alone decide."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**content), attn_implementation="eager", experts_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            uniform = "norm" in name
            tensor.uniform_(0.5, 1.5, generator=generator) if uniform else tensor.normal_(
                0, 0.2, generator=generator
            )
        return [model.eval()(torch.arange(24)[None]).logits, *(p.detach() for p in model.parameters())]


def others(value: Any) -> list[Any]:
    """Values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2 or 1, value + 1]
    if isinstance(value, str):
        return ["gelu", "relu", "greedy", "softmax"]
    if isinstance(value, list):
        return [value[::-1], value[:-1] + value[:1]]
    if isinstance(value, dict):
        return [value | {key: other} for key, one in value.items() for other in others(one)[:1]]
    return [True, 1, 2, 0.5, 8]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODELS)
def test_what_changes_transformers_model_changes_ours_or_is_refused(model_type: str) -> None:
    name, architecture, sizes = MODELS[model_type]
    adapter = adapter_of(Plugins.discover(), name)
    base = AutoConfig.for_model(model_type, **sizes).to_dict()
    expected = computed(base)
    ours = read_config(adapter, base | {"architectures": [architecture]}, what="it")
    changing, ignored = 0, []
    for key, value in base.items():
        for other in others(value) if key not in OF_FILES else ():
            content = base | {key: other}
            try:
                got = computed(content)
            except Exception:  # what transformers does not take either
                continue
            if [one.shape for one in got] == [one.shape for one in expected] and torch.equal(
                got[0], expected[0]
            ):
                continue
            changing += 1
            try:
                if read_config(adapter, content | {"architectures": [architecture]}, what="it") == ours:
                    ignored.append({key: other})
            except HekatonError:
                pass
    assert not ignored
    assert changing >= 10
