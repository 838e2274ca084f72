"""How many floating-point operations a token costs."""

from __future__ import annotations


def decoder_flops_per_token(
    n_matmul_params: int,
    *,
    n_layers: int,
    n_heads: int,
    head_dim: float,
    seq_len: int,
    window: int | None = None,
    chunk: int | None = None,
) -> float:
    """Forward and backward of a dense decoder, per token.

    6 operations per parameter that is multiplied (2 forward, 4 backward; embeddings are looked up, not
    multiplied), and for each layer's causal attention half of the 12 per pair of positions and channel
    (PaLM, Chowdhery et al., 2022, appendix B, halved for the causal mask).

    :param head_dim: where keys and values differ in theirs, the mean of both.
    :param window: keys that a query sees at most, as :class:`hekaton_blocks.AttentionPattern` has it; and so
        for ``chunk``, of which only one of both is given.
    """
    pairs = seq_len / 2  # per query
    if chunk is not None:
        whole, rest = divmod(seq_len, chunk)
        pairs = (whole * chunk**2 + rest**2) / (2 * seq_len)
    if window is not None and window < seq_len:
        pairs -= (seq_len - window) ** 2 / (2 * seq_len)
    return 6.0 * n_matmul_params + 12.0 * n_layers * n_heads * head_dim * pairs
