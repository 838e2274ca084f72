"""FLUX.1 (Black Forest Labs, 2024): a rectified-flow transformer over the patches of an image and the tokens
of its text (Esser et al., 2024, arXiv 2403.03206), with torchtitan's parameter names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton_blocks import AttentionPattern, LayerCount, apply_rotary, rotary_table
from hekaton_blocks.attention import DocumentAttention

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model
NORM_EPS = 1e-6
SINUSOIDS = 256
"""Channels in which times and guidance are given to the model."""


@dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """What the flavors differ in.

    :param dim: width of the streams of image and text.
    :param n_double_blocks: blocks in which image and text have weights of their own.
    :param n_single_blocks: blocks after them, with the same weights for both.
    :param channels: of a packed patch: four times those of the autoencoder's latents.
    :param text_dim: channels of the text encoder's states (T5), one per token.
    :param pooled_dim: channels of the pooled encoding of the text (CLIP), one per text.
    :param axes: channels of a head that turn with each of the three positions: 0, row, column.
    :param guidance: whether the scale of the guidance is an input, as in a model distilled from it (dev).
    """

    dim: Annotated[PositiveInt, Mathematics]
    n_heads: Annotated[PositiveInt, Mathematics]
    n_double_blocks: LayerCount
    n_single_blocks: LayerCount
    axes: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Mathematics] = (16, 56, 56)
    channels: PositiveInt = 64
    text_dim: PositiveInt = 4_096
    pooled_dim: PositiveInt = 768
    hidden_dim_factor: PositiveInt = 4
    rope_theta: Annotated[float, Field(gt=1, le=1e30), Mathematics] = 10_000.0
    guidance: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ConfigError(f"n_heads = {self.n_heads} does not divide dim = {self.dim}")
        if any(size % 2 for size in self.axes):
            raise ConfigError(f"axes = {self.axes}: rotary positions turn channels in pairs, one is odd")
        if sum(self.axes) != self.head_dim:
            raise ConfigError(
                f"axes = {self.axes} have {sum(self.axes)} channels, a head has dim / n_heads = "
                f"{self.head_dim}"
            )
        if self.channels % 4:
            raise ConfigError(f"channels = {self.channels}: a patch has those of 2 by 2 latents")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        return self.hidden_dim_factor * self.dim


def sinusoids(values: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of times or guidance scales, at wavelengths from 2 pi to 20,000 pi of thousandths.

    Not a part of the model's forward: FSDP casts what a forward is given to the precision of the computation,
    and bfloat16 would leave 8 bits of a time.

    :param values: (batch,), times from 0 (image) to 1 (noise).
    :returns: (batch, SINUSOIDS), float32, or float64 where ``values`` are.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32)) * 1000.0
    pairs = torch.arange(SINUSOIDS // 2, dtype=torch.float32, device=values.device)
    angles = wide[:, None] * torch.exp(-math.log(10_000.0) * pairs / (SINUSOIDS // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Patches of 2 by 2 latents, row by row.

    :param latents: (batch, channels, height, width), height and width even.
    :returns: (batch, height / 2 * width / 2, channels * 4)
    """
    patches = latents.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (batch, c, h, 2, w, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The latents that :func:`pack` made the patches of: (batch, channels, height, width)."""
    grid = patches.unflatten(-1, (-1, 2, 2)).unflatten(1, (height // 2, width // 2))  # (batch, h, w, c, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def patch_positions(height: int, width: int, *, device: torch.device | None = None) -> torch.Tensor:
    """The three positions of each patch of latents of ``height`` by ``width``: 0, row, column.

    :returns: (height / 2 * width / 2, 3), int64
    """
    rows = torch.arange(height // 2, device=device)
    columns = torch.arange(width // 2, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((torch.zeros_like(row), row, column), dim=-1).flatten(0, 1)


def _normed(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def _modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """:param x: (batch, seq, dim); ``shift`` and ``scale``: (batch, 1, dim)"""
    return (1 + scale) * _normed(x) + shift


class Embedder(nn.Module):
    """Two linear layers from what conditions the model to its width."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, dim)
        self.out_layer = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (batch, in_dim); :returns: (batch, dim)"""
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    """Shifts, scales and gates from the condition (adaLN-Zero; Peebles and Xie, 2022)."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(dim, parts * dim)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """:param condition: (batch, dim); :returns: ``parts`` of (batch, 1, dim)"""
        return self.lin(F.silu(condition))[:, None].chunk(self.parts, dim=-1)


class HeadNorms(nn.Module):
    """RMSNorms of the channels of each query and key."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)

    def forward(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """:param qkv: (batch, seq, 3 * dim); :returns: three of (batch, seq, heads, head_dim)"""
        q, k, v = qkv.unflatten(-1, (3, -1, self.query_norm.normalized_shape[0])).unbind(-3)
        return self.query_norm(q), self.key_norm(k), v


class StreamAttention(nn.Module):
    """The projections of one stream of a double block around the attention that both have together."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = HeadNorms(head_dim)
        self.proj = nn.Linear(dim, dim)


def _attend(
    inner: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: torch.Tensor
) -> torch.Tensor:
    """:param q: (batch, seq, heads, head_dim), as ``k`` and ``v``; :returns: (batch, seq, dim)"""
    q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    out: torch.Tensor = inner(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None)
    return out.transpose(1, 2).flatten(-2)


class DoubleBlock(nn.Module):
    """Image and text with weights of their own, attending to each other (Esser et al., 2024, figure 2b)."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden_dim
        self.img_mod = Modulation(dim, 6)
        self.img_attn = StreamAttention(dim, config.head_dim)
        self.img_mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim))
        self.txt_mod = Modulation(dim, 6)
        self.txt_attn = StreamAttention(dim, config.head_dim)
        self.txt_mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU("tanh"), nn.Linear(hidden, dim))
        self.inner = DocumentAttention(AttentionPattern(causal=False))

    def forward(
        self, img: torch.Tensor, txt: torch.Tensor, condition: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:param img: (batch, n_img, dim); :param txt: (batch, n_txt, dim); :param condition: (batch, dim);
        :param rotary: of text and image, in this order."""
        shift, scale, gate, *img_mlp = self.img_mod(condition)
        of_img = self.img_attn.norm(self.img_attn.qkv(_modulated(img, shift, scale)))
        txt_shift, txt_scale, txt_gate, *txt_mlp = self.txt_mod(condition)
        of_txt = self.txt_attn.norm(self.txt_attn.qkv(_modulated(txt, txt_shift, txt_scale)))
        q, k, v = (torch.cat(both, dim=1) for both in zip(of_txt, of_img, strict=True))
        both = _attend(self.inner, q, k, v, rotary)
        to_txt, to_img = both.split((txt.shape[1], img.shape[1]), dim=1)
        img = img + gate * self.img_attn.proj(to_img)
        img = img + img_mlp[2] * self.img_mlp(_modulated(img, img_mlp[0], img_mlp[1]))
        txt = txt + txt_gate * self.txt_attn.proj(to_txt)
        txt = txt + txt_mlp[2] * self.txt_mlp(_modulated(txt, txt_mlp[0], txt_mlp[1]))
        return img, txt


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side (Dehghani et al., 2023), for text and image in one sequence."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        dim = config.dim
        self.widths = (3 * dim, config.hidden_dim)
        self.modulation = Modulation(dim, 3)
        self.linear1 = nn.Linear(dim, sum(self.widths))
        self.linear2 = nn.Linear(dim + config.hidden_dim, dim)
        self.norm = HeadNorms(config.head_dim)
        self.inner = DocumentAttention(AttentionPattern(causal=False))

    def forward(self, x: torch.Tensor, condition: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: (batch, seq, dim)"""
        shift, scale, gate = self.modulation(condition)
        qkv, hidden = self.linear1(_modulated(x, shift, scale)).split(self.widths, dim=-1)
        attended = _attend(self.inner, *self.norm(qkv), rotary)
        return x + gate * self.linear2(torch.cat((attended, F.gelu(hidden, approximate="tanh")), dim=-1))


class FinalLayer(nn.Module):
    """From the image's stream to patches."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: (batch, seq, channels)"""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(_modulated(x, shift, scale))


class Flux(nn.Module):
    """The transformer, without the text encoders and the autoencoder around it."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.img_in = nn.Linear(config.channels, dim)
        self.txt_in = nn.Linear(config.text_dim, dim)
        self.time_in = Embedder(SINUSOIDS, dim)
        self.vector_in = Embedder(config.pooled_dim, dim)
        self.guidance_in = Embedder(SINUSOIDS, dim) if config.guidance else None
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.n_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.n_single_blocks))
        self.final_layer = FinalLayer(dim, config.channels)

    def forward(
        self,
        img: torch.Tensor,
        img_ids: torch.Tensor,
        txt: torch.Tensor,
        timesteps: torch.Tensor,
        y: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity from image to noise.

        :param img: (batch, n_img, channels), packed latents with noise; see :func:`pack`.
        :param img_ids: (batch, n_img, 3), the positions of each patch, integers; those of the text are 0.
        :param txt: (batch, n_txt, text_dim), states of the text encoder.
        :param timesteps: (batch, SINUSOIDS), :func:`sinusoids` of the times.
        :param y: (batch, pooled_dim), the pooled encoding of the text.
        :param guidance: (batch, SINUSOIDS), of the guidance scales, where the model takes them.
        :returns: (batch, n_img, channels)
        """
        condition = self.time_in(timesteps) + self.vector_in(y)
        if self.guidance_in is not None:
            assert guidance is not None, "this model is given the guidance scale"
            condition = condition + self.guidance_in(guidance)
        rotary = self._rotary(img_ids, txt.shape[1])
        img, txt = self.img_in(img), self.txt_in(txt)
        for block in self.double_blocks:
            img, txt = block(img, txt, condition, rotary)
        n_txt = txt.shape[1]
        x = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            x = block(x, condition, rotary)
        return self.final_layer(x[:, n_txt:], condition)

    def _rotary(self, img_ids: torch.Tensor, n_txt: int) -> torch.Tensor:
        """:returns: (batch, n_txt + n_img, 1, head_dim / 2, 2)"""
        ids = torch.cat((img_ids.new_zeros(img_ids.shape[0], n_txt, 3), img_ids), dim=1)
        theta = self.config.rope_theta
        tables = [rotary_table(ids[..., axis], size, theta) for axis, size in enumerate(self.config.axes)]
        return torch.cat(tables, dim=-2)
