"""Texts that a model continues, token by token."""

from __future__ import annotations

import hashlib
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.loss import NextToken
from hekaton.parallel.contract import needed_inputs
from hekaton.sampling import Sampling, draw
from hekaton.spec import CachedForward, OpenCache, ReadsPrompts

AT_ONCE = 256
"""Tokens of a prompt that pass through the model together, which bounds the memory of their logits."""


class Token(NamedTuple):
    """A token that was generated."""

    prompt: int
    """Which prompt it continues."""
    id: int
    last: bool
    """Whether the text ends with it."""


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    ends: Collection[int] = (),
    cache: OpenCache | None = None,
    positions: int | None = None,
    ids: int | None = None,
    batch_size: int = 8,
) -> list[list[int]]:
    """Continue prompts.

    A prompt's continuation does not depend on the prompts beside it, rounding apart; prompts that are equal
    get draws of their own.

    :param model: in eval mode; its output for ``tokens`` of (batch, seq) are logits, (batch, seq, vocab).
    :param prompts: ids of each, at least one.
    :param max_new_tokens: of each prompt, at most.
    :param sampling: how tokens are drawn.
    :param ends: ids that end a text; the one that does is its last.
    :param cache: ``TrainSpec.cache`` of the model; without it each token takes a pass over the whole text.
    :param positions: the longest text that the model is for, prompt included; texts end there.
    :param ids: how many ids the tokenizer has: from this one on none is drawn. A model often has more rows.
    :param batch_size: prompts that are continued together.
    :returns: the new ids of each prompt.
    :raises ConfigError: for an empty prompt, one without a position left, and a model that does not return
        logits.
    """
    new: list[list[int]] = [[] for _ in prompts]
    for token in stream(
        model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, ends=ends, cache=cache,
        positions=positions, ids=ids, batch_size=batch_size,
    ):  # fmt: skip
        new[token.prompt].append(token.id)
    return new


def stream(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    ends: Collection[int] = (),
    cache: OpenCache | None = None,
    positions: int | None = None,
    ids: int | None = None,
    batch_size: int = 8,
    is_over: Callable[[int, Sequence[int]], bool] | None = None,
    streams: Sequence[int] | None = None,
) -> Iterator[Token]:
    """Continue prompts, and give each token as it comes: see :func:`generate`.

    :param is_over: called with the number of a prompt and its new tokens, whether the text ends with them,
        for ends that are no single token.
    :param streams: of the draws of each prompt, by default as :func:`streams_of` gives them.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not isinstance(value, numbers.Integral):
            raise ConfigError(f"{name} = {value!r}: a whole number was expected")
        if value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1")
    for number, prompt in enumerate(prompts):
        check_prompt(prompt, positions=positions, what=f"prompt {number + 1}")
    streams = streams_of(prompts) if streams is None else streams

    def tokens() -> Iterator[Token]:
        for first in range(0, len(prompts), batch_size):
            batch = range(first, min(first + batch_size, len(prompts)))
            most = max_new_tokens
            room = [most if positions is None else min(most, positions - len(prompts[row])) for row in batch]
            rows = _Rows([list(prompts[row]) for row in batch], room, [streams[row] for row in batch])
            draws = partial(_drawn, sampling=sampling or Sampling(), ids=ids, streams=rows.streams)
            over = None if is_over is None else partial(_over, is_over, batch)
            for token in _continue(model, rows, draws, frozenset(ends), cache or recomputed, over):
                yield Token(first + token.prompt, token.id, token.last)

    return tokens()


def check_prompt(prompt: Sequence[int], *, positions: int | None, what: str) -> None:
    """:raises ConfigError: for a prompt that nothing can follow."""
    if not prompt:
        raise ConfigError(f"{what} has no tokens", hint="the model continues at least one")
    if positions is not None and len(prompt) >= positions:
        raise ConfigError(
            f"{what} has {len(prompt):,} tokens, and the model {positions:,} positions: none is left",
            hint=f"give it at most {positions - 1:,} tokens",
        )


def streams_of(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What the draws of each prompt are keyed by: its ids, and how many equal prompts come before it."""
    streams = []
    equal: Counter[tuple[int, ...]] = Counter()
    for prompt in map(tuple, prompts):
        key = f"{equal[prompt]}/{','.join(map(str, prompt))}"
        streams.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))
        equal[prompt] += 1
    return streams


def _over(is_over: Callable[[int, Sequence[int]], bool], batch: range, row: int, new: Sequence[int]) -> bool:
    return is_over(batch[row], new)


class _Rows(NamedTuple):
    """Texts that are generated together.

    :param room: new tokens that each may have.
    :param streams: of random draws.
    """

    texts: list[list[int]]
    room: list[int]
    streams: list[int]


def _drawn(
    logits: torch.Tensor, number: int, *, sampling: Sampling, ids: int | None, streams: Sequence[int]
) -> list[int]:
    return draw(logits[:, :ids], sampling, number=number, streams=streams)


@torch.inference_mode()
def _continue(
    model: nn.Module,
    rows: _Rows,
    draws: Callable[[torch.Tensor, int], list[int]],
    ends: Collection[int],
    open_cache: OpenCache,
    is_over: Callable[[int, Sequence[int]], bool] | None,
) -> Iterator[Token]:
    texts = rows.texts
    prompt_lengths = [len(text) for text in texts]
    length = max(max(prompt_lengths), *map(sum, zip(prompt_lengths, rows.room, strict=True)))
    device = next(model.parameters()).device
    with open_cache(model, len(texts), length) as forward:
        logits = _read_prompts(forward, texts, device)
        running = set(range(len(texts)))
        for number in range(max(rows.room)):
            drawn = draws(logits, number)
            for row in sorted(running):
                texts[row].append(drawn[row])
                last = drawn[row] in ends or number + 1 == rows.room[row]
                if is_over is not None and not last:
                    last = is_over(row, texts[row][prompt_lengths[row] :])
                running -= {row} if last else set()
                yield Token(row, drawn[row], last)
            if not running:
                return
            # A text that has ended stays where it is.
            tokens = torch.tensor([[text[-1]] for text in texts], device=device)
            at = torch.tensor([[len(text) - 1] for text in texts], device=device)
            logits = forward(tokens, at)[:, -1]


def _read_prompts(
    forward: CachedForward, texts: Sequence[Sequence[int]], device: torch.device
) -> torch.Tensor:
    """The logits after each prompt, (rows, vocab). Shorter ones are padded at their end, where new tokens
    come to lie."""
    lengths = torch.tensor([len(text) for text in texts], device=device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    tokens = tokens.to(device)
    found: torch.Tensor | None = None
    for start in range(0, longest, AT_ONCE):
        part = tokens[:, start : start + AT_ONCE]
        at = torch.arange(start, start + part.shape[1], device=device).expand(part.shape)
        columns = lengths - 1 - start
        within = columns.clamp(0, part.shape[1] - 1)
        if isinstance(forward, ReadsPrompts):
            logits = forward.read(part, at, within)
        else:
            logits = forward(part, at)[torch.arange(len(texts), device=device), within]
        found = torch.empty_like(logits) if found is None else found
        ending = (columns == within).nonzero()[:, 0]
        found[ending] = logits[ending]
    assert found is not None
    return found


@contextmanager
def recomputed(model: nn.Module, rows: int, length: int) -> Iterator[CachedForward]:
    """A ``TrainSpec.cache`` for any model: keeps the tokens, and computes the whole text each time.

    :raises ConfigError: (by what it gives) for a model that does not return logits.
    """
    device = next(model.parameters()).device
    so_far = torch.zeros(rows, length, dtype=torch.long, device=device)
    row = torch.arange(rows, device=device)[:, None]
    needed = [one.name for one in needed_inputs(model, NextToken().inputs(length))]

    def forward(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        so_far[row, positions] = tokens
        end = int(positions.max()) + 1
        text = so_far[:, :end]
        at = torch.arange(end, device=device).expand(text.shape)
        inputs = {"tokens": text, "positions": at, "documents": torch.ones_like(text)}
        logits = model(**{name: inputs[name] for name in needed})
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != text.shape or logits.dim() != 3:
            what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ConfigError(
                f"cannot generate: {type(model).__name__} returns {what}, not logits of (batch, seq, vocab)"
            )
        chosen: torch.Tensor = logits[row, positions]
        return chosen

    yield forward
