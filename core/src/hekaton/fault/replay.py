"""Computation that does not repeat: a step's first microbatch is computed twice, and must give equal bits."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hekaton.errors import TrainingError
from hekaton.fault.digest import differences, digests

MOST_NAMED = 5
"""Tensors that are named of each rank; the others are counted."""


class Replay:
    """Runs a microbatch twice from the same state, and compares loss, gradients and buffers.

    Needs algorithms that give the same bits each time.

    :param parts: the parts of the model on this rank.
    """

    def __init__(self, parts: Sequence[nn.Module], *, device: torch.device) -> None:
        self._parts = parts
        self._device = device
        self.fault: TrainingError | None = None
        """What the last step that was replayed is not to be used for, the same on every rank."""

    def __call__(
        self, step: int, run: Callable[[], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
    ) -> tuple[torch.Tensor, Any]:
        """Run the first microbatch of a step, before which there are no gradients; every rank calls this.

        It costs the microbatch once more, the gradients once more in memory where there is room for them, a
        copy of the buffers, and a small collective over all ranks.

        :param run: accumulates the gradients of the microbatch; returns this rank's part of the loss and of
            its terms.
        :returns: what ``run`` returned. Gradients, buffers and generators are as if it had run once, and
            :attr:`fault` names what differed and where.
        """
        self.fault = None
        before = {name: buffer.clone() for name, buffer in self._buffers()}
        generators = _generators(self._device)
        results = self._results(run())
        kept = dict if has_room(results.values(), self._device) else self._digests
        with torch.no_grad():
            for name, buffer in self._buffers():
                results[_buffer(name)] = buffer.clone()
                buffer.copy_(before[name])
        first = kept(results)
        del results  # and with them the gradients, of which there may be digests
        _set_generators(generators, self._device)
        for _, parameter in self._parameters():
            parameter.grad = None
        losses = run()
        self._compare(step, first, kept(self._results(losses)))
        return losses

    def _compare(
        self, step: int, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]
    ) -> None:
        if list(first) == list(second):
            differ = differences(first.values(), second.values(), self._device)
        else:
            differ = torch.ones(len(second), dtype=torch.bool, device=self._device)
        found = differ.any().to(torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        if found.item():
            self.fault = self._error(
                step, [name for name, yes in zip(second, differ.tolist(), strict=True) if yes]
            )

    def _results(self, losses: tuple[torch.Tensor, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What a pass has left on this rank, as plain tensors."""
        total, terms = losses
        found = {"the loss": total}
        found |= {f"the term '{name}' of the loss": term for name, term in terms.items()}
        found |= {_buffer(name): buffer for name, buffer in self._buffers()}
        found |= {
            f"the gradient of {name}": parameter.grad
            for name, parameter in self._parameters()
            if parameter.grad is not None
        }
        return {name: one.to_local() if isinstance(one, DTensor) else one for name, one in found.items()}

    def _digests(self, results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(results, digests(results.values(), self._device).unbind(), strict=True))

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self._parts:
            yield from part.named_parameters()

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for part in self._parts:
            yield from part.named_buffers()

    def _error(self, step: int, differ: Sequence[str]) -> TrainingError:
        everywhere: list[Any] = [None] * dist.get_world_size()
        mine = (socket.gethostname(), len(differ), list(differ[:MOST_NAMED]))
        dist.all_gather_object(everywhere, mine)
        lines = []
        for rank, (host, count, first) in enumerate(everywhere):
            if count:
                more = f" and {count - len(first)} more" if count > len(first) else ""
                lines.append(f"rank {rank} (host {host}): {', '.join(first)}{more}")
        return TrainingError(
            f"step {step}: the first microbatch was computed twice from the same state, with other results",
            hint="\n".join(
                [
                    *lines,
                    "one of these hosts may compute wrongly (gradients are summed over ranks, so that all of "
                    "them see it): test the hardware; the optimizer has not used the result",
                ]
            ),
        )


def has_room(results: Iterable[torch.Tensor], device: torch.device) -> bool:
    """Whether the results of a pass can stay on the device in the next one, which needs as much as the last.

    Half of what is left stays free, because free memory is in pieces.
    """
    if device.type != "cuda":
        return True
    needed = sum(one.nbytes for one in results if one.device == device)
    free, _ = torch.cuda.mem_get_info(device)
    left = free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    return needed <= left // 2


def _buffer(name: str) -> str:
    return f"the buffer {name}"


def _generators(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generators(states: Sequence[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
