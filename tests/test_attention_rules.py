"""``[model] attention_backend``: what a backend cannot compute is refused with the ones that can; a run computes
by the one that it names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hekaton.building import materialize
from hekaton.cli import main
from hekaton.config import load
from hekaton.contributions import Model
from hekaton.errors import HekatonError
from hekaton.init import initialize, resolve_init
from hekaton.meta import on_meta
from hekaton.plugins import Plugins
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


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama3", "qwen3", "deepseek_v3", "llama4", "gpt_oss"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_on_cuda_no_document_sees_another(name, backend):
    """In bfloat16: what is changed in the first document changes no logit of another, and some of its own."""
    spec = Plugins.discover().get(Model, name).spec.load()
    config = spec.flavor("debugmodel")
    model = on_meta(spec, config).to(torch.bfloat16)
    materialize(model, torch.device("cuda"))
    initialize(model, resolve_init(model, spec.init(config), what=name), seed=0)
    layers = [module for module in model.modules() if isinstance(module, DocumentAttention)]
    if not {what for layer in layers for what in layer.requires} <= set(BACKENDS[backend].supports):
        return
    for layer in layers:
        layer.backend = backend
    lengths = torch.tensor([150, 1, 105])
    ids = torch.arange(3, device="cuda").repeat_interleave(lengths.cuda())[None]
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])[None].cuda()
    tokens = torch.randint(0, 2_000, (1, 256), generator=torch.Generator().manual_seed(0)).cuda()
    other = tokens.clone()
    other[:, :150] = (other[:, :150] + 1) % 2_000
    before, after = (model(one, positions, ids) for one in (tokens, other))
    torch.testing.assert_close(after[:, 150:], before[:, 150:], rtol=1e-2, atol=1e-2)
    assert (after[:, :150] - before[:, :150]).abs().amax(-1).min() > 1e-1
