"""Whether a forward runs for the first time, for models that count what passes through them."""

from __future__ import annotations

import torch


def is_recomputed() -> bool:
    """Whether this forward is computed again in backward, under activation checkpointing. What a model counts
    (tokens of each expert) it has then counted already."""
    return torch._C._current_graph_task_id() != -1
