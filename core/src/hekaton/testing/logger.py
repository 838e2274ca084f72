"""Does a logger keep its contract: does it take what runs log, resume, and leave the metrics as they are?"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hekaton.components import missing_members
from hekaton.metrics import MetricLogger

METRICS: tuple[Mapping[str, float], ...] = (
    {"loss": 5.5, "grad_norm": 1.0, "tokens_per_second": 1000},
    {"loss": float("nan"), "validation_loss": 5.4},
)
"""Not every step has the same ones, and a loss may be none."""


def check_logger(build: Callable[[Any, Path], MetricLogger], *, section: Any = None) -> None:
    """Log two steps of a new run, and again after a resume, into a folder that is not there yet.

    :param build: as in the record, ``build(section, folder)``.
    :raises AssertionError: saying what is wrong. What the logger itself raises is raised.
    """
    with tempfile.TemporaryDirectory() as around:
        folder = Path(around, "logs")
        for done in (0, 1):
            logger: Any = build(section, folder)
            missing = missing_members(MetricLogger, logger)
            assert not missing, f"{type(logger).__name__} has no {', '.join(missing)}"
            with contextlib.closing(logger):
                if hasattr(logger, "resume"):
                    logger.resume(done)
                for step, metrics in enumerate(METRICS[done:], start=done + 1):
                    returned = logger.log(step, MappingProxyType(metrics))
                    assert returned is None, f"log() returned {returned!r}"
