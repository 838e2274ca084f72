"""Tensor, sequence, context and expert parallel for hekaton."""

from hekaton.contributions import Check, ContextParallel, Dispatcher, ParallelStyle, Ref, hookimpl

HEKATON_API = ">=1,<2"

_STYLES = {
    "colwise": "linear layer sharded by its outputs",
    "rowwise": "linear layer sharded by its inputs",
    "whole_colwise": "linear layer sharded by its outputs, which are gathered",
    "whole_rowwise": "linear layer sharded by its inputs, of a whole input, whose outputs are whole",
    "summed_rowwise": "linear layer sharded by its inputs, whose outputs are whole",
    "sequence_norm": "norm of this rank's part of the sequence, gathered afterwards",
    "local_norm": "norm of this rank's part of the sequence, not gathered",
    "local_linear": "linear layer that every rank has whole, of its part of the sequence",
    "gathering_colwise": "linear layer sharded by its outputs, which gathers its input",
    "gathering_vocab_output": "output projection sharded by the vocabulary, which gathers its input",
    "gather_for_heads": "input gathered for the heads that this rank has",
    "vocab_embedding": "embedding sharded by its rows",
    "vocab_output": "output projection sharded by the vocabulary",
    "part_norm": "norm of this rank's part of the sequence, which stays a part",
    "part_layer": "layer of which each rank computes its part of the sequence",
    "part_linear": "linear layer inside a part_layer, which every rank has whole",
    "head_norm": "norm of each head's channels, of the heads that this rank has",
    "head_parameters": "parameters with a value for each head, of the heads that this rank has",
    "biased_experts": "as grouped_experts, of tensors mlp1 and mlp2 with biases",
    "grouped_experts": "experts' tensors w1, w2, w3, distributed over ranks, each sharded by its hidden dim",
    "replicate": "module that every rank has whole",
}
_STRATEGIES = {
    "allgather": ("every rank gathers all keys and values", ("positions",)),
    "ring": ("keys and values are sent around a ring of ranks", None),
    "ulysses": ("all-to-all from parts of the sequence to parts of the heads", ()),
}
"""Name -> summary, and what it requires of an attention backend."""


@hookimpl
def hekaton_parallel_styles() -> list[ParallelStyle]:
    return [
        ParallelStyle(style, build=Ref(f"hekaton_parallel.styles:{style}"), summary=summary)
        for style, summary in _STYLES.items()
    ]


@hookimpl
def hekaton_context_parallel() -> list[ContextParallel]:
    return [
        ContextParallel(
            name,
            build=Ref(f"hekaton_parallel.context:{name}"),
            supports=("bidirectional", "window", "chunks", "sinks", "softcap"),
            requires=requires,
            summary=summary,
        )
        for name, (summary, requires) in _STRATEGIES.items()
    ]


@hookimpl
def hekaton_dispatchers() -> list[Dispatcher]:
    return [
        Dispatcher(
            "alltoall",
            build=Ref("hekaton_parallel.dispatch:alltoall"),
            summary="each token directly to the ranks of its experts",
        ),
        Dispatcher(
            "deepep",
            build=Ref("hekaton_parallel.deepep:deepep"),
            needs=("deep_ep",),
            summary="each token once to each rank with experts of it, by DeepEP",
        ),
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "dispatcher_sends_the_precision",
            rule=Ref("hekaton_parallel.checks:dispatcher_sends_the_precision"),
            summary="the dispatcher of experts sends the precision that layers compute in",
        )
    ]
