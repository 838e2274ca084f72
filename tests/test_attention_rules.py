"""``[model] attention_backend``: what a backend cannot compute is refused with the ones that can; a run computes
by the one that it names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hekaton.cli import main
from hekaton.config import load
from hekaton.errors import HekatonError
from hekaton.rules import check
from hekaton_blocks import DocumentAttention
from hekaton_blocks.backends import BACKENDS

TINY = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 16, "vocab_size": 264}
CONTEXT = ["--parallelism.context_parallel_degree", "2"]


def said(backend: str, *flags: str, model: str = "llama3", device: str = "cuda") -> str:
    """What is refused; empty where nothing is."""
    words = ["--model.name", model, "--model.attention_backend", backend, "--training.seq_len", "64", *flags]
    try:
        check(load([], words), world_size=None, device_type=device, here=False)
    except HekatonError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("model", ["llama3", "llama4", "gpt_oss", "deepseek_v3"])
def test_every_backend_is_taken_where_it_can_compute_the_model(model):
    assert [name for name in BACKENDS if not said(name, model=model)] == (
        ["sdpa", "flex"] if model == "gpt_oss" else ["sdpa", "flex", "varlen"]
    )


@pytest.mark.parametrize(
    ("backend", "flags", "where", "parts"),
    [
        ("flax", [], {}, ["offers no such backend", "did you mean 'flex'?", "choose one of: flex, sdpa, varlen"]),
        ("flex", [], {"device": "cpu"}, ["it is for cuda, and the run is on cpu", "choose 'sdpa', or leave it out"]),
        ("varlen", [], {"model": "gpt_oss"}, [
            "'layers.0.attention.inner' of gpt_oss debugmodel: it does not support sinks",
            "choose 'sdpa' or 'flex', or leave it out", "from: --model.attention_backend",
        ]),
        ("varlen", ["--training.mixed_precision_param", "float32"], {}, [
            "it computes in bfloat16 or float16, not in float32", "choose 'sdpa' or 'flex'",
        ]),
        ("flex", CONTEXT, {}, [
            "it does not compute the parts that 'allgather' gives each rank", "choose 'sdpa', or leave it out",
        ]),
        ("sdpa", [*CONTEXT, "--parallelism.context_parallel_strategy", "ring"], {}, [
            "the context-parallel strategy 'ring' computes attention itself", "leave it out",
        ]),
    ],
)  # fmt: skip
def test_what_a_backend_cannot_compute_is_refused_with_the_ones_that_can(backend, flags, where, parts):
    message = said(backend, *flags, **where)
    for part in parts:
        assert part in message


def test_whole_sequences_of_some_heads_are_for_every_backend():
    for backend in BACKENDS:
        assert not said(backend, *CONTEXT, "--parallelism.context_parallel_strategy", "ulysses")


def test_a_run_computes_by_the_backend_that_it_names(tmp_path, monkeypatch):
    """On a CPU too, by one that says that it can: here ``sdpa`` under another name, which is counted."""
    asked = []

    def attend(q, k, v, pattern, prepared, sinks):
        asked.append(prepared)
        return DocumentAttention(pattern)(q, k, v, prepared)

    counted = replace(BACKENDS["sdpa"], prepare=lambda pattern, ids: ids.clone(), attend=attend)
    monkeypatch.setattr(DocumentAttention, "backends", {**BACKENDS, "counted": counted})
    words = [
        "train", "--model.tokenizer", "byte", "--training.dataset", "python_stdlib", "--training.steps", "1",
        "--training.seq_len", "64", "--training.local_batch_size", "1", "--activation_checkpoint.mode", "none",
        "--model.overrides", json.dumps(TINY),
        "--job.dump_folder", str(tmp_path), "--model.attention_backend", "counted",
    ]  # fmt: skip
    assert main(words) == 0
    assert len(asked) == 2
    assert asked[0] is asked[1]  # prepared once for both layers
