"""What a configuration check can see of a run with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hekaton.rules import Run


def adapters_have_a_base(run: Run) -> Iterator[str]:
    """The weights beside which adapters are trained come from somewhere."""
    checkpoint = run.config.checkpoint
    if "lora" in run.config.model.converters and checkpoint.initial_load_path is None:
        yield (
            "lora: the frozen weights are the initial ones, drawn at random, unless the run resumes: "
            "checkpoint.initial_load_path names those of a trained model"
        )


def lora_export_is_written(run: Run) -> Iterator[str]:
    """What an export at the end of the run is made of has an effect where there is one."""
    if run.is_set("lora.export") and not run.config.checkpoint.last_save_in_hf:
        yield "lora.export: no effect: checkpoint.last_save_in_hf is false"
