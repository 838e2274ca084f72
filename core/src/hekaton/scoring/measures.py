"""What is taken from logits where they are computed, so that no others have to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hekaton.sampling import Sampling, draw


class Measure(Protocol):
    """Turns the logits of chosen places into a table of numbers.

    Ranks that have parts of a text measure the places that they have; the tables are summed.
    """

    size: int
    """Rows of the table."""
    width: int
    """Its columns."""

    def __call__(self, logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:param logits: (n, vocab); :param places: (n,) the number of the place that each is of.
        :returns: (m,) the rows of the table that follow from them, and (m, width) what stands there, float64.
        """


class LogLikelihoods:
    """The log-likelihood of tokens, and whether another one is more likely.

    :param places: (size,) the number of the place whose logits each token is scored by.
    :param tokens: (size,) ids.
    """

    width = 2

    def __init__(self, places: torch.Tensor, tokens: torch.Tensor) -> None:
        self.size = len(places)
        self._places, self._tokens = places, tokens

    def __call__(self, logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = torch.full((int(self._places.max()) + 1,), -1, device=logits.device)
        known[places] = torch.arange(len(places), device=logits.device)
        at = known[self._places.to(logits.device)]
        rows = (at >= 0).nonzero()[:, 0]
        at, tokens = at[rows], self._tokens.to(logits.device)[rows]
        chosen = logits.log_softmax(-1)[at, tokens]
        others = logits.argmax(-1)[at] != tokens
        return rows, torch.stack([chosen.double(), others.double()], dim=1)


class NextTokens:
    """The next token of each text.

    :param streams: of the random draws of each text.
    :param ids: how many ids the tokenizer has; from this one on none is drawn.
    :param number: of the token, from 0.
    """

    width = 1

    def __init__(self, sampling: Sampling, *, streams: Sequence[int], ids: int | None, number: int) -> None:
        self.size = len(streams)
        self._sampling, self._streams = sampling, streams
        self._ids, self._number = ids, number

    def __call__(self, logits: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        streams = [self._streams[place] for place in places.tolist()]
        drawn = draw(logits[:, : self._ids], self._sampling, number=self._number, streams=streams)
        return places, torch.tensor(drawn, dtype=torch.float64, device=logits.device)[:, None]
