"""The next token of a text, drawn from a model's logits."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hekaton.draws import Draw
from hekaton.errors import ConfigError, TrainingError

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    :param temperature: logits are divided by it; 0 takes the most likely token.
    :param top_k: draw among so many of the most likely tokens (Fan et al., 2018).
    :param top_p: draw among the fewest most likely tokens whose probabilities sum to at least so much
        (nucleus sampling, Holtzman et al., 2020); of those that ``top_k`` leaves.
    :param seed: the same seed draws the same tokens.
    :raises ConfigError: for values that are out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(value := getattr(self, name), numbers.Real):
                raise ConfigError(f"{name} = {value!r}: a number was expected")
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) and (name, value) != ("top_k", None):
                raise ConfigError(f"{name} = {value!r}: a whole number was expected")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature = {self.temperature:g} must be a finite number, at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k = {self.top_k} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p:g} must be above 0 and at most 1")


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What tokens are drawn with: temperature, then ``top_k``, then ``top_p``, as in transformers. Of tokens
    that are equally likely the one with the lower id comes first.

    :param logits: (rows, vocab); :returns: (rows, vocab), float64, on the CPU.
    """
    logits = logits.to(_CPU, torch.float64)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    # Less the largest, so that a small temperature does not overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    likely = logits.softmax(-1)
    if sampling.top_k is None and sampling.top_p == 1:
        return likely
    likely, order = likely.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        likely[:, sampling.top_k :] = 0.0
        likely /= likely.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        likely[likely.cumsum(-1) - likely >= sampling.top_p] = 0.0
        likely /= likely.sum(-1, keepdim=True)
    return torch.empty_like(likely).scatter_(1, order, likely)


def draw(logits: torch.Tensor, sampling: Sampling, *, number: int, streams: Sequence[int]) -> list[int]:
    """The next token of each row.

    What is drawn depends on the logits, the seed, the number of the token and the row's stream, and on no
    other row; it is drawn on the CPU, so on every device alike.

    :param logits: (rows, vocab)
    :param number: of the token, from 0.
    :param streams: of the rows: rows of one stream and the same logits draw the same token.
    :raises TrainingError: for logits that are not numbers.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise TrainingError(
            "the model's logits are not finite", hint="its weights are, or its dtype overflows"
        )
    if sampling.temperature == 0:
        greedy: list[int] = logits.argmax(-1).tolist()
        return greedy
    of_step = Draw(seed=sampling.seed, step=number, rows=range(0), device=_CPU, purpose="generation")
    # Two draws of 24 bits each.
    uniform = torch.stack([of_step("token", (2,), row, distribution="uniform") for row in streams]).double()
    at = uniform[:, 0] + uniform[:, 1] * 2.0**-24
    sums = probabilities(logits, sampling).cumsum(-1)
    drawn: list[int] = torch.searchsorted(sums, (at * sums[:, -1])[:, None], right=True)[:, 0].tolist()
    return drawn
