"""The configuration section of this plugin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hekaton.config import AtResume, SectionModel


class LoraSection(SectionModel):
    """Low-rank adapters (Hu et al., 2021): each adds ``alpha / rank * B A x`` to what its layer gives for
    ``x``. They alone are trained."""

    rank: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Rows of A, and columns of B."""

    alpha: Annotated[float, Field(gt=0, le=1e6), AtResume("refusal")] = 16.0
    """Scale of the adapters, which is divided by their rank, so that a learning rate holds for all ranks."""

    targets: list[str] = []  # noqa: RUF012, pydantic copies it
    """Patterns of the linear layers that have an adapter (``"layers.*.attention.{wq,wv}"``); when empty, all
    that are in the model's blocks (Dettmers et al., 2023, "QLoRA", section 4)."""

    export: Annotated[Literal["merged", "adapter"], AtResume("nothing")] = "merged"
    """What ``checkpoint.last_save_in_hf`` writes: the model with its adapters merged into its weights, or the
    adapters alone, in the format of PEFT."""
