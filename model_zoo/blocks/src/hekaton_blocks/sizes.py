"""Bounds of what configurations of models count."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

MAX_LAYERS = 4096
LayerCount: TypeAlias = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
"""Layers of a model. Each is a module, also on the meta device: a number with a few digits too many would
fill the memory before anything could be said. The deepest transformers have 1,000 (Wang et al., 2022)."""
