"""DeepSeek V3 (DeepSeek-AI, 2024), and V2 before it, with torchtitan's parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton_blocks import (
    LatentAttention,
    LayerCount,
    MoEConfig,
    MultiTokenDecoder,
    TransformerBlock,
    YarnScaling,
    feed_forward_of,
    rotary_table,
)  # fmt: skip

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_dense_layers: the first layers, whose feed-forward layer is dense.
    :param inter_dim: width inside the feed-forward layer of these.
    :param moe: the experts of all further layers.
    :param q_lora_rank: channels of the latent that queries are made from; 0 for queries made at once.
    :param kv_lora_rank: channels of the latent that keys and values are made from.
    :param qk_nope_head_dim: channels of a query and key that positions do not rotate.
    :param qk_rope_head_dim: channels that they do; those of the key are shared by all heads.
    :param v_head_dim: channels of a value.
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    :param n_mtp_layers: layers that predict one token more, for the objective ``multi_token``.
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_dense_layers: NonNegativeInt
    n_heads: Annotated[PositiveInt, Mathematics]
    inter_dim: PositiveInt
    moe: Annotated[MoEConfig | None, Mathematics] = None
    q_lora_rank: NonNegativeInt = 0
    kv_lora_rank: PositiveInt = 512
    qk_nope_head_dim: Annotated[PositiveInt, Mathematics] = 128
    qk_rope_head_dim: Annotated[PositiveInt, Mathematics] = 64
    v_head_dim: Annotated[PositiveInt, Mathematics] = 128
    vocab_size: PositiveInt = 102_400
    n_mtp_layers: Annotated[Literal[0, 1], Mathematics] = 0
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-6
    rope_theta: Annotated[float, Field(gt=1, le=1e30), Mathematics] = 10_000.0
    rope_scaling: Annotated[YarnScaling | None, Mathematics] = None

    def __post_init__(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim = {self.qk_rope_head_dim} is odd; rotary positions turn channels in pairs"
            )
        if self.n_dense_layers > self.n_layers:
            raise ConfigError(f"n_dense_layers = {self.n_dense_layers} of n_layers = {self.n_layers}")
        if self.moe is None and self.n_dense_layers < self.n_layers:
            raise ConfigError(
                f"layers from {self.n_dense_layers} on have experts, and moe does not say which",
                hint=f"choose n_dense_layers = {self.n_layers} for a dense model",
            )
        if self.n_mtp_layers and self.experts is None:
            raise ConfigError("n_mtp_layers = 1: the layer for a second token has experts, and no other has")

    @property
    def experts(self) -> MoEConfig | None:
        """Those of the layers that have some."""
        return self.moe if self.n_dense_layers < self.n_layers else None

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


def block(
    config: DeepSeekV3Config, number: int, *, layer: type[TransformerBlock] = TransformerBlock
) -> TransformerBlock:
    """A layer: the first ones are dense, the others, and that for a second token, have experts."""
    experts = config.moe if number >= config.n_dense_layers else None
    factor = 1.0 if config.rope_scaling is None else config.rope_scaling.softmax_factor
    attention = LatentAttention(config, softmax_factor=factor)
    return layer(config, attention, **feed_forward_of(config.dim, config.inter_dim, experts))


class DeepSeekV3(MultiTokenDecoder):
    """The decoder."""

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__(config, block)

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines, as ``rotary_table`` gives them."""
        config = self.config
        return (rotary_table(positions, config.qk_rope_head_dim, config.rope_theta, config.rope_scaling),)
