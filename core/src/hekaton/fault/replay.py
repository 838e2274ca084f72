"""Computation that does not repeat: a step's first microbatch is computed twice, and must give equal bits."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hekaton.errors import TrainingError
from hekaton.fault.digest import digests

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

        It costs the microbatch once more, a copy of the buffers, and two small collectives over all ranks.

        :param run: accumulates the gradients of the microbatch; returns this rank's part of the loss and of
            its terms.
        :returns: what ``run`` returned. Gradients, buffers and generators are as if it had run once, and
            :attr:`fault` names what differed and where.
        """
        self.fault = None
        buffers = dict(self._buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        generators = _generators(self._device)
        names, first = self._digests(run())
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(before[name])
        _set_generators(generators, self._device)
        for _, parameter in self._parameters():
            parameter.grad = None
        losses = run()
        again, second = self._digests(losses)
        wrong = first.shape != second.shape or names != again
        differ = torch.ones_like(second, dtype=torch.bool) if wrong else first != second
        found = differ.any().to(torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        if found.item():
            self.fault = self._error(
                step, [name for name, yes in zip(again, differ.tolist(), strict=True) if yes]
            )
        return losses

    def _digests(
        self, losses: tuple[torch.Tensor, Mapping[str, torch.Tensor]]
    ) -> tuple[list[str], torch.Tensor]:
        total, terms = losses
        found = {"the loss": total}
        found |= {f"the term '{name}' of the loss": term for name, term in terms.items()}
        found |= {f"the buffer {name}": buffer for name, buffer in self._buffers()}
        found |= {
            f"the gradient of {name}": parameter.grad
            for name, parameter in self._parameters()
            if parameter.grad is not None
        }
        local = [one.to_local() if isinstance(one, DTensor) else one for one in found.values()]
        return list(found), digests(local, self._device)

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


def _generators(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generators(states: Sequence[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
