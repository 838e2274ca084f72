"""The identity subject: what the processes of a run must have in common."""

from __future__ import annotations

import os

from hekaton.config import JobConfig


def build(section: None, config: JobConfig) -> dict[str, str]:
    """Names and values that must be equal on all processes; a resume compares them with the checkpoint's."""
    return {"image": os.environ.get("CONTAINER_IMAGE", "none")}
