"""Copies of a run's state in the memory of the host, so that training can go on while they are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hekaton.checkpoint.tensors.comparison import Parts, stored_key


class Staging:
    """Copies tensors to the host, each rank its own shards. Their memory is kept and used again: fresh memory
    costs several times what the copying does.

    :param pinned: copy from CUDA on a stream of its own, to pinned memory: :meth:`copy` returns at once, the
        copies are there after :meth:`wait`, and :meth:`hold_device` comes before any change of the originals.
        Otherwise the copies are there when :meth:`copy` returns.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._stream: Any = torch.cuda.Stream() if pinned else None  # type: ignore[no-untyped-call]
        self._copied: Any = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
        """Copy the state; the copies of the last call are overwritten."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        copies = {
            part: {name: self._copy_of(stored_key(part, name), tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }
        if self._stream is not None:
            self._copied.record(self._stream)
        return copies

    def hold_device(self) -> None:
        """Let what is put on the device's current stream from here on begin after the copying."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Wait until the copies are there."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy_of(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        copy = self._buffers.get(key)
        if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
            copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=self._stream is not None)
            self._buffers[key] = copy
        # The optimizer alone changes these; what a forward may change, a buffer, is copied at once.
        late = isinstance(tensor, nn.Parameter) or key.startswith("optimizer.")
        if self._stream is not None and local.is_cuda and late:
            with torch.cuda.stream(self._stream):
                copy.copy_(local, non_blocking=True)
            local.record_stream(self._stream)
        else:
            copy.copy_(local)
        if not isinstance(tensor, DTensor):
            return copy
        # Not from_local(), which would move it back to the mesh's device.
        return DTensor(copy, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
