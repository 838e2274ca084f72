"""The section of the objective ``multi_token``, and what a run with a layer for a second token must say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hekaton.config import SectionModel
from hekaton.errors import HekatonError

if TYPE_CHECKING:
    from hekaton.rules import Run


class MultiTokenSection(SectionModel):
    """The objective ``multi_token``, which has the model predict the token after the next as well."""

    weight: Annotated[float, Field(gt=0, le=100)] = 0.3
    """Weight of the loss of the second token; DeepSeek V3 was trained with 0.3, and with 0.1 at the end."""


def second_token_is_trained(run: Run) -> Iterator[HekatonError]:
    """A layer for a second token is there to be trained, and nothing else predicts one."""
    if run.model is None:
        return
    asked = run.config.training.objective == "multi_token"
    has_layer = run.config.model.name == "deepseek_v3" and getattr(run.model, "n_mtp_layers", 0)
    if asked and not has_layer:
        yield run.violation(
            'training.objective = "multi_token" is for a model with a layer for a second token',
            "training.objective",
            hint="set n_mtp_layers = 1 in [model.overrides] of deepseek_v3",
        )
    if has_layer and not asked:
        yield run.violation(
            "n_mtp_layers = 1 is a layer for a second token, which the run does not train",
            "model.overrides.n_mtp_layers",
            "training.objective",
            hint='add training.objective = "multi_token"',
        )
