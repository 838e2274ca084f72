"""Tables that decoders have in common: how they are cut, how they start, and what a token costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hekaton.init import Constant, DepthScaled, Initializer, Normal, TruncatedNormal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton_blocks.multi_token import MULTI_TOKEN_ENDS
from hekaton_blocks.routing import MoEConfig

SMALL, DEEP = TruncatedNormal(0.02), DepthScaled(0.02)
"""What weights start from, and those that are added to the residual stream."""
ENDS = {"norm": "sequence_norm", "output": "vocab_output"}


def decoder_plan(
    of_layers: Mapping[str, str],
    *,
    experts: Mapping[str, str] | None = None,
    n_mtp_layers: int = 0,
) -> ParallelPlan:
    """How a :class:`hekaton_blocks.Decoder` is cut.

    :param of_layers: pattern of modules -> their style under tensor parallel.
    :param experts: as in the plan.
    :param n_mtp_layers: of a :class:`hekaton_blocks.MultiTokenDecoder`; see :func:`all_layers`.
    """
    layers, ends = all_layers(n_mtp_layers), MULTI_TOKEN_ENDS if n_mtp_layers else ENDS
    return ParallelPlan(
        block=layers,
        tensor={"tok_embeddings": "vocab_embedding", **of_layers, **ends},
        experts=experts or {},
        context=[f"{layers}.attention.inner"],
        stages=Stages(first=["tok_embeddings"], layers="layers", last=["norm", "output"]),
    )


def all_layers(n_mtp_layers: int) -> str:
    """The pattern of all layers, that for a second token among them."""
    return "{layers,mtp_layers}.*" if n_mtp_layers else "layers.*"


def attention_styles() -> dict[str, str]:
    """Of grouped-query attention with the norm before it, by heads."""
    return {
        "layers.*.attention_norm": "sequence_norm",
        "layers.*.attention.{wq,wk,wv}": "colwise",
        "layers.*.attention.wo": "rowwise",
    }


def latent_attention_styles(q_lora_rank: int, layers: str = "layers.*") -> dict[str, str]:
    """Of latent attention with the norm before it, by heads. The projections to latents are whole on every
    rank and work on its part of the sequence, so that latents are gathered, which are narrower than what they
    are made from.

    :param layers: pattern of the layers.
    """
    queries = {"wq": "gathering_colwise"}
    if q_lora_rank:
        queries = {"wq_a": "local_linear", "q_norm": "sequence_norm", "wq_b": "colwise"}
    styles = {
        **queries, "wkv_a": "local_linear", "kv_norm": "sequence_norm", "shared_key": "gather_for_heads",
        "wkv_b": "colwise", "wo": "rowwise",
    }  # fmt: skip
    own = {f"{layers}.attention.{name}": style for name, style in styles.items()}
    return {f"{layers}.attention_norm": "local_norm", **own}


def feed_forward_styles(
    n_layers: int, *, sparse: Collection[int] = (), experts: MoEConfig | None = None, layers: str = "layers.*"
) -> dict[str, str]:
    """Of the feed-forward layers with the norms before them. Experts and the shared ones work on each rank's
    part of the sequence.

    :param sparse: the numbers of the layers with ``experts``; all others are dense.
    :param layers: pattern of the layers, and of further ones with experts.
    """
    dense = [number for number in range(n_layers) if number not in sparse]
    styles = {}
    if dense:
        styles[f"{_of(dense, n_layers)}.ffn_norm"] = "sequence_norm"
        styles |= {"layers.*.feed_forward.{w1,w3}": "colwise", "layers.*.feed_forward.w2": "rowwise"}
    if sparse and experts is not None:
        styles[f"{_of(sorted(sparse), n_layers)}.ffn_norm"] = "part_norm"
        styles |= {f"{layers}.moe": "part_layer", f"{layers}.moe.router.gate": "part_linear"}
        if experts.n_shared_experts:
            styles[f"{layers}.moe.shared_experts.{{w1,w2,w3}}"] = "part_linear"
    return styles


def _of(numbers: Sequence[int], n_layers: int) -> str:
    """The pattern of these layers."""
    return "layers.*" if len(numbers) == n_layers else f"layers.{{{','.join(map(str, numbers))}}}"


def decoder_init(
    dim: int,
    of_layers: Mapping[str, Initializer],
    *,
    tie_embeddings: bool = False,
    n_mtp_layers: int = 0,
) -> dict[str, Initializer]:
    """How a :class:`hekaton_blocks.Decoder` starts.

    A tied embedding is drawn small: each token's hidden state begins as its own embedding, so at the scale of
    a separate one the first logits would all but repeat the input.

    :param of_layers: of what is in its layers beside their two norms.
    :param n_mtp_layers: of a :class:`hekaton_blocks.MultiTokenDecoder`.
    """
    second_token: dict[str, Initializer] = {
        "mtp_layers.*.{enorm,hnorm,norm}.weight": Constant(1.0), "mtp_layers.*.eh_proj.weight": SMALL,
    }  # fmt: skip
    return {
        "tok_embeddings.weight": SMALL if tie_embeddings else Normal(1.0),
        "**.{attention_norm,ffn_norm}.weight": Constant(1.0),
        **of_layers,
        **(second_token if n_mtp_layers else {}),
        "norm.weight": Constant(1.0),
        "output.weight": TruncatedNormal(dim**-0.5, cutoff=3 * dim**-0.5),
    }


def attention_init() -> dict[str, Initializer]:
    """Of the projections of grouped-query attention."""
    return {"**.attention.{wq,wk,wv}.weight": SMALL, "**.attention.wo.weight": DEEP}


def latent_attention_init() -> dict[str, Initializer]:
    """Of the projections of latent attention and the norms of latents."""
    return {
        "**.{q_norm,kv_norm}.weight": Constant(1.0),
        "**.attention.{wq,wq_a,wq_b,wkv_a,wkv_b}.weight": SMALL,
        "**.attention.wo.weight": DEEP,
    }


def feed_forward_init(
    *, dense: bool = True, experts: MoEConfig | None = None, router: Initializer = DEEP
) -> dict[str, Initializer]:
    """Of the feed-forward layers.

    :param dense: whether some layers are without experts.
    :param router: of the router's projection.
    """
    table: dict[str, Initializer] = {}
    if dense or (experts is not None and experts.n_shared_experts):
        table |= {"**.w1.weight": SMALL, "**.{w2,w3}.weight": DEEP}
    if experts is not None:
        table |= {"**.experts.w1": SMALL, "**.experts.{w2,w3}": DEEP, "**.router.gate.weight": router}
    return table
