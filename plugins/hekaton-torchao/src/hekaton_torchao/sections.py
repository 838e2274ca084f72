"""The configuration section of this plugin."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hekaton.config import SectionModel


class AdamW8bitSection(SectionModel):
    """What ``optimizer.name = "AdamW8bit"`` keeps in 8 bits; ``[optimizer]`` has rate, decay, betas and
    epsilon."""

    block_size: Annotated[int, Field(ge=2, le=2**16)] = 256
    """Neighbouring values of a row that share a scale (Dettmers et al., 2022, "8-bit Optimizers via
    Block-wise Quantization"). Parameters whose rows it does not divide keep their state in float32."""

    min_size: Annotated[int, Field(ge=0)] = 4096
    """Values of a parameter below which its state is kept in float32."""
