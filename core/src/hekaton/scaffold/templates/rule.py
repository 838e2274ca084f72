"""The check: a rule between sections, before anything is built. Every run imports this module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hekaton.errors import HekatonError

if TYPE_CHECKING:
    from hekaton.rules import Run


def rate_is_bounded(run: Run) -> Iterator[HekatonError | str]:
    """Yields violations, and notices as plain strings; nothing in a run that does not set the section."""
    largest = getattr(run.config.section("template_check"), "largest_lr", None)
    rate = run.config.optimizer.lr
    if largest is not None and rate > largest:
        yield run.violation(
            f"optimizer.lr = {rate} is above template_check.largest_lr = {largest}",
            "optimizer.lr",
            hint=f"choose {largest} or less",
        )
