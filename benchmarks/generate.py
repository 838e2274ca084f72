"""Tokens per second of greedy texts on the CPU, against transformers' ``generate`` on the same weights.

    python benchmarks/generate.py [--runs 5] [--new_tokens 128] [--models llama3,qwen3,...]

Makes each model with random weights in float32, as a folder that both sides open, and lets them continue the
same prompt in turns, after one unmeasured turn. Prints the medians of tokens per second of processor time,
which other load on the machine changes little, and of the ratio of each turn. The texts must be equal. One
thread. Goal: a ratio of at least 1.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hekaton_hf
from hekaton.generation import generate
from hekaton.loading import load_folder
from hekaton.plugins import Plugins
from hekaton.sampling import Sampling

CPU = torch.device("cpu")
PROMPT = [(7 * n) % 2_000 for n in range(64)]
COMMON = {
    "vocab_size": 2_048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1_024,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 192, "num_experts_per_tok": 4, "norm_topk_prob": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 64},
    "qwen3_moe": {
        **EXPERTS, "head_dim": 64, "num_experts": 16, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "deepseek_v3": {
        **EXPERTS, "num_key_value_heads": 8, "first_k_dense_replace": 1, "n_routed_experts": 16, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 1, "q_lora_rank": 96, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "llama4_text": {
        "head_dim": 32, "intermediate_size": 192, "intermediate_size_mlp": 768, "num_local_experts": 16,
        "interleave_moe_layer_step": 2, "attention_chunk_size": 64,
    },
    "gpt_oss": {
        "head_dim": 32, "intermediate_size": 192, "num_local_experts": 16, "num_experts_per_tok": 4,
        "sliding_window": 64,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--models", default=",".join(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | hekaton, tokens/s | transformers, tokens/s | ratio |\n| --- | --- | --- | --- |")
    for kind in given.models.split(","):
        print(row(kind, runs=given.runs, new_tokens=given.new_tokens), flush=True)


def row(kind: str, *, runs: int, new_tokens: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = saved(kind, Path(folder))
        loaded = load_folder(Path(folder), Plugins.discover(), format_name="hf", device=CPU)

    def of_ours() -> list[int]:
        (new,) = generate(
            loaded.model,
            [PROMPT],
            max_new_tokens=new_tokens,
            sampling=Sampling(temperature=0),
            cache=loaded.spec.cache,
        )
        return new

    def of_theirs() -> list[int]:
        ids = torch.tensor([PROMPT])
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        new: list[int] = whole[0, len(PROMPT) :].tolist()
        return new

    assert of_ours() == of_theirs(), f"{kind}: the texts differ"
    turns = [(speed(of_ours, new_tokens), speed(of_theirs, new_tokens)) for _ in range(runs)]
    ours, others = (statistics.median(side) for side in zip(*turns, strict=True))
    ratio = statistics.median(mine / other for mine, other in turns)
    return f"| {kind} | {ours:,.0f} | {others:,.0f} | {ratio:.2f} |"


def speed(action: Callable[[], object], tokens: int) -> float:
    """Tokens per second of processor time."""
    began = time.process_time()
    action()
    return tokens / (time.process_time() - began)


def saved(kind: str, folder: Path) -> Any:
    """A model of transformers with random weights, saved with a tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **MODELS[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    assets = Path(hekaton_hf.__file__).parent / "assets" / "python_stdlib"
    shutil.copyfile(assets / "tokenizer.json", folder / "tokenizer.json")
    return model


if __name__ == "__main__":
    main()
