"""Log-likelihoods of texts after others, and continuations of texts, shared out among processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from hekaton.distributed import all_sum
from hekaton.generation import stream, streams_of
from hekaton.sampling import Sampling
from hekaton.scoring.forward import Forward, PlainForward
from hekaton.scoring.measures import LogLikelihoods, NextTokens

VALUES_AT_ONCE = 2**27
"""Logits of a batch where its size is not given: half a GiB of them in float32."""
ROWS_AT_ONCE = 64


class Scored(NamedTuple):
    """A text after another one.

    :param is_greedy: whether each of its tokens is the most likely one.
    """

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class TextPair:
    """A context and the continuation that is scored: token ids, at least one of the context."""

    context: Sequence[int]
    continuation: Sequence[int]

    @property
    def given(self) -> tuple[int, ...]:
        """What the model is given: the last token is only scored."""
        return (*self.context, *self.continuation)[:-1]


def log_likelihoods(
    forward: Forward,
    requests: Sequence[TextPair],
    *,
    vocab_size: int,
    batch_size: int | None = None,
    told: Callable[[int], object] | None = None,
) -> list[Scored]:
    """Score texts. Every process of a layout calls this with the same requests and gets the same answer.

    Requests for which the model is given the same tokens, such as answers of one token to one question, are
    one row of a batch.

    :param vocab_size: rows of the model's output, by which the size of batches is chosen.
    :param batch_size: rows of a batch on a process; chosen by length where it is ``None``, and fixed under a
        pipeline.
    :param told: is called with the number of requests of each batch that is done here.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        if request.continuation:
            alike[request.given].append(number)
    texts = sorted(alike, key=lambda text: (-len(text), text))
    table = torch.zeros(len(requests), 2, dtype=torch.float64, device=forward.device)
    batches = _batches([len(text) for text in texts], forward, vocab_size=vocab_size, batch_size=batch_size)
    for batch, counts in _shared_out(batches, forward):
        rows = [texts[one] for one in batch]
        mine = [alike[text] for text in rows]
        found = _score(forward, rows, [[requests[number].continuation for number in row] for row in mine])
        if counts:
            numbers = [number for row in mine for number in row]
            table[torch.tensor(numbers, device=table.device)] = found
            if told is not None:
                told(len(numbers))
    if forward.group is not None:
        table = all_sum(table, forward.group)
    return [Scored(sum_, others == 0) for sum_, others in table.tolist()]


def continuations(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    *,
    room: Sequence[int],
    is_over: Callable[[int, Sequence[int]], bool],
    sampling: Sampling,
    ids: int | None,
    vocab_size: int,
    batch_size: int | None = None,
    told: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Continue texts. Every process of a layout calls this with the same prompts and gets the same answer.

    A whole model on a process keeps keys and values where it can; on other layouts each token takes a pass
    over the whole text.

    :param room: new tokens that each may have, at least 1.
    :param is_over: called with the number of a prompt and its new tokens, whether the text ends with them.
    :param ids: how many ids the tokenizer has: from this one on none is drawn.
    :returns: the new ids of each prompt. The other parameters are as those of :func:`log_likelihoods`.
    """
    streams = streams_of(prompts)
    order = sorted(range(len(prompts)), key=lambda one: -len(prompts[one]) - room[one])
    lengths = [len(prompts[one]) + room[one] for one in order]
    batches = _batches(lengths, forward, vocab_size=vocab_size, batch_size=batch_size)
    done: dict[int, list[int]] = {}
    for batch, counts in _shared_out(batches, forward):
        numbers = [order[one] for one in batch]
        if isinstance(forward, PlainForward):
            done |= _streamed(
                forward, numbers, [prompts[number] for number in numbers],
                room=room, is_over=is_over, sampling=sampling, ids=ids, streams=streams,
            )  # fmt: skip
            if told is not None:
                told(len(numbers))
            continue
        new: dict[int, list[int]] = {number: [] for number in numbers}
        running = list(numbers) if counts else []
        while _some_are_running(running, forward):
            shown = [*running] or numbers[:1]
            texts = [[*prompts[number], *new[number]] for number in shown]
            drawn = _next_tokens(
                forward, texts, sampling=sampling, streams=[streams[number] for number in shown], ids=ids,
                number=len(new[shown[0]]),
            )  # fmt: skip
            for number, token in zip(shown, drawn, strict=True):
                if number not in running:
                    continue
                new[number].append(token)
                if len(new[number]) == room[number] or is_over(number, new[number]):
                    running.remove(number)
        if counts:
            done |= new
            if told is not None:
                told(len(new))
    if forward.group is not None and forward.shards > 1:
        parts: list[dict[int, list[int]]] = [{} for _ in range(forward.shards)]
        dist.all_gather_object(parts, done, group=forward.group)
        done = {number: ids for part in parts for number, ids in part.items()}
    return [done[number] for number in range(len(prompts))]


def _streamed(
    forward: PlainForward,
    numbers: Sequence[int],
    prompts: Sequence[Sequence[int]],
    *,
    room: Sequence[int],
    is_over: Callable[[int, Sequence[int]], bool],
    sampling: Sampling,
    ids: int | None,
    streams: Sequence[int],
) -> dict[int, list[int]]:
    """Number of a prompt -> its new ids."""

    def over(row: int, new: Sequence[int]) -> bool:
        return len(new) == room[numbers[row]] or is_over(numbers[row], new)

    new: dict[int, list[int]] = {number: [] for number in numbers}
    for token in stream(
        forward.model, prompts, max_new_tokens=max(room[number] for number in numbers), sampling=sampling,
        cache=forward.cache, ids=ids, batch_size=len(prompts), is_over=over,
        streams=[streams[number] for number in numbers],
    ):  # fmt: skip
        new[numbers[token.prompt]].append(token.id)
    return new


def _batches(
    lengths: Sequence[int], forward: Forward, *, vocab_size: int, batch_size: int | None
) -> list[range]:
    """:param lengths: descending."""
    batches = []
    start = 0
    while start < len(lengths):
        values = max(lengths[start], 1) * vocab_size
        rows = forward.rows or batch_size or max(1, min(ROWS_AT_ONCE, VALUES_AT_ONCE // values))
        batches.append(range(start, min(start + rows, len(lengths))))
        start += rows
    return batches


def _shared_out(batches: Sequence[range], forward: Forward) -> Iterator[tuple[range, bool]]:
    """The batches of this shard, one after the other, and whether what is found of it counts: where shards
    must run equally often, one without a batch of its own runs another's."""
    for first in range(0, len(batches), forward.shards):
        mine = first + forward.shard
        if mine < len(batches):
            yield batches[mine], True
        elif forward.together:
            yield batches[first], False


def _some_are_running(running: Sequence[int], forward: Forward) -> bool:
    if not forward.together or forward.group is None:
        return bool(running)
    return bool(all_sum(torch.tensor(len(running), device=forward.device), forward.group).item())


def _padded(forward: Forward, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """(rows, length) ids, with rows and tokens of 0 where the layout needs more."""
    longest = max(map(len, texts))
    length = forward.length or -(-longest // forward.multiple) * forward.multiple
    tokens = torch.zeros(forward.rows or len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    return tokens


def _score(
    forward: Forward, texts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> torch.Tensor:
    """:param continuations: of each text, those that end with the token after it.
    :returns: (n, 2): the log-likelihood of each continuation, and how many of its tokens are not the most
        likely ones.
    """
    rows: list[int] = []
    columns: list[int] = []
    places: list[int] = []
    tokens: list[int] = []
    owners: list[int] = []
    owner = 0
    for row, (text, several) in enumerate(zip(texts, continuations, strict=True)):
        first = len(text) - max(map(len, several))
        before = len(rows) - first
        rows += [row] * (len(text) - first)
        columns += range(first, len(text))
        for continuation in several:
            places += range(before + len(text) - len(continuation), before + len(text))
            tokens += continuation
            owners += [owner] * len(continuation)
            owner += 1
    measure = LogLikelihoods(torch.tensor(places), torch.tensor(tokens))
    table = forward(_padded(forward, texts), torch.tensor(rows), torch.tensor(columns), measure)
    return table.new_zeros(owner, 2).index_add_(0, torch.tensor(owners, device=table.device), table)


def _next_tokens(
    forward: Forward,
    texts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    streams: Sequence[int],
    ids: int | None,
    number: int,
) -> list[int]:
    rows = torch.arange(len(texts))
    columns = torch.tensor([len(text) - 1 for text in texts])
    measure = NextTokens(sampling, streams=streams, ids=ids, number=number)
    return [int(one) for one in forward(_padded(forward, texts), rows, columns, measure)[:, 0].tolist()]
