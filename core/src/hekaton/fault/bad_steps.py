"""Steps whose gradients must not reach the weights: not finite, of a loss far above that of recent steps, or
computed wrongly; and what is done about weights that have drifted apart.

Whether a step is bad is known when its gradients are there, before anything but them and the buffers has
changed. On CUDA the host would have to wait for the device to know it too. A fused optimizer can be told on
the device: it leaves weights and moments as they are where ``found_inf`` is 1, as ``torch.amp.GradScaler``
has it do. The host then reads the flag of a step at the end of the next, when the device has long written it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hekaton.checkpoint.disk.folders import reason_of
from hekaton.checkpoint.runs.run_state import whole_cursor
from hekaton.errors import TrainingError
from hekaton.fault.spikes import Spikes
from hekaton.finiteness import CURE
from hekaton.json_lines import append_line
from hekaton.optim import local

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.data.loader import Loader
    from hekaton.fault.checks import FaultChecks

log = logging.getLogger("hekaton")

FILE = "skipped_data.jsonl"
"""In the run folder: a line for each bad step, with the data that no weights have seen."""


@dataclass(frozen=True)
class _Unread:
    """A step whose flags are on their way to the host."""

    step: int
    flags: torch.Tensor
    written: Any
    """The event after which the host has the flags; ``None`` on a CPU."""
    cursors: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class _Bad:
    """A step, and what is to be done about it.

    :param reason: what is wrong with it, and ``details`` where, for the log.
    :param error: that ends a run.
    :param effect: what is said of it when several end a run.
    """

    step: int
    policy: str
    reason: str
    error: TrainingError
    details: str = ""
    effect: str = "; no weight was changed by it"
    cure: str = CURE

    @classmethod
    def of(cls, step: int, policy: str, fault: TrainingError) -> _Bad:
        """What was computed or stored wrongly in a step."""
        reason = fault.message.removeprefix(f"step {step}: ")
        details = "".join(f"; {line}" for line in fault.hint.splitlines())
        return cls(
            step=step, policy=policy, reason=reason, error=fault, details=details, effect="", cure=fault.hint
        )


def decides_on_device(device: torch.device, optimizers: list[torch.optim.Optimizer]) -> bool:
    """Whether bad steps are left out without the host knowing of it: on a CPU it knows in any case."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return device.type == "cuda" and devices <= {"cuda"} and takes_found_inf(optimizers)


def takes_found_inf(optimizers: list[torch.optim.Optimizer]) -> bool:
    """Whether all of them take ``found_inf``, as the fused Adam and AdamW of torch do."""
    adam = (torch.optim.Adam, torch.optim.AdamW)
    return all(
        isinstance(one, adam) and all(group["fused"] for group in one.param_groups) for one in optimizers
    )


class BadSteps:
    """Leaves out the updates of bad steps, on all ranks alike, and ends the run or has it go back."""

    def __init__(self, assembled: Assembled, loader: Loader, faults: FaultChecks) -> None:
        """:param loader: the training data; :param faults: finds what was computed or stored wrongly."""
        self._settings = settings = assembled.config.fault
        self._optimizers = list(assembled.optimizers)
        self._device = assembled.process.device
        self._rank = assembled.process.rank
        self._readers = assembled.meshes.batch["dp"].get_group()
        self._loader = loader
        self._faults = faults
        self._path = Path(assembled.config.job.dump_folder, FILE)
        policies = {settings.nonfinite, *([settings.spike] if settings.spike_factor else [])}
        self._goes_on = policies != {"abort"}
        self._on_device = (
            "rollback" not in policies
            and not settings.spike_factor
            and decides_on_device(self._device, self._optimizers)
        )
        self._buffers = [local(buffer) for part in assembled.parts for buffer in part.buffers()]
        self._before: list[torch.Tensor] = []
        self._cursor = loader.cursor()
        self._spikes = Spikes(factor=settings.spike_factor, window=settings.spike_window)
        self._unread: _Unread | None = None
        self._in_a_row = 0
        self._furthest = 0
        self.go_back = False
        """Whether the run is to load its last good step: call :meth:`went_back` then."""
        self.why = ""
        """Why it is to go back, in words."""
        self.good_before = 0
        """Where it is to go back: the step before which steps are good."""
        self.left_out_last = False
        """Whether the last step that was read is one that changed nothing."""

    def begin(self) -> None:
        """Called before the data of a step is read."""
        if self._goes_on:
            self._before = [buffer.clone() for buffer in self._buffers]
            self._cursor = self._loader.cursor()

    @contextlib.contextmanager
    def left_out(
        self,
        step: int,
        grad_norm: torch.Tensor,
        loss: Callable[[], float] | None,
        *,
        fault: TrainingError | None = None,
    ) -> Iterator[bool]:
        """The context in which the optimizers may step, unless it gives true.

        :param grad_norm: over all ranks: a scalar.
        :param loss: gives the loss over all ranks; collective, called where spikes are looked for.
        :param fault: what is wrong with the gradients, the same on all ranks.
        :raises TrainingError: on every rank, where the run is to end: at this step, or for the step before.
        """
        cursors = (self._cursor, self._loader.cursor()) if self._goes_on else (self._cursor, self._cursor)
        if fault is not None:
            self.settle()
            self.left_out_last = True
            self._leave_out(_Bad.of(step, self._settings.nonfinite, fault), cursors)
            self._restore_buffers()
            yield True
            return
        flags = torch.stack([~torch.isfinite(grad_norm), torch.zeros_like(grad_norm, dtype=torch.bool)])
        flags = flags.to(self._device, torch.float32)
        value = loss() if loss is not None and self._settings.spike_factor else None
        if value is not None and self._spikes.has(value):
            flags[1] = 1.0
        if dist.is_initialized() and dist.get_world_size() > 1:  # also of a norm that is wrong on one rank
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        if self._on_device:
            with self._told(flags[0]):
                yield False
            self._restore_buffers(flags[0])
            self.settle()
            self._send(step, flags, cursors)
            return
        self._read(step, flags, cursors, value)
        yield self.left_out_last
        if value is not None and not self.left_out_last:
            self._spikes.add(value)

    def settle(self) -> None:
        """Read the flags that are still under way. Called by all ranks after the same step.

        :raises TrainingError: as :meth:`left_out`.
        """
        if self._unread is None:
            return
        unread, self._unread = self._unread, None
        if unread.written is not None:
            unread.written.synchronize()
        self._read(unread.step, unread.flags, unread.cursors, None)

    def look_at(self, step: int, fault: TrainingError | None) -> None:
        """Act on weights or moments that have drifted apart. No step can be left out that would make them
        equal again: with ``skip``, too, the run ends. What was saved since they were equal may have drifted.

        :param fault: what drifted, the same on all ranks.
        :raises TrainingError: ``fault``, unless the run is to go back.
        """
        if fault is None:
            return
        self.settle()
        if self._settings.nonfinite != "rollback":
            raise fault
        self._leave_out(_Bad.of(step, "rollback", fault), (self._cursor, self._cursor))
        self.good_before = self._faults.equal_at + 1

    def went_back(self, bad: int, step: int, cursor: torch.Tensor) -> None:
        """The run has loaded ``step``, and its data goes on after step ``bad``.

        :param cursor: the position of every row of the global batch at ``step``.
        """
        self.go_back = False
        now = whole_cursor(self._loader.cursor(), self._readers)
        self._record(bad, f"back to step {step}, without the data in between", cursor, now)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this, JSON: a run that resumes decides as one that was not stopped."""
        return {
            "in_a_row": self._in_a_row,
            "furthest": self._furthest,
            "equal_at": self._faults.equal_at,
            "losses": self._spikes.losses(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` was when the step was saved that the run has loaded. In a rollback
        the counts stay: they are what ends a run that goes back again and again."""
        self._spikes.put_back(state["losses"])
        self._faults.equal_at = state["equal_at"]
        if not self.go_back:
            self._in_a_row, self._furthest = state["in_a_row"], state["furthest"]

    @contextlib.contextmanager
    def _told(self, bad: torch.Tensor) -> Iterator[None]:
        told: list[Any] = list(self._optimizers)
        for optimizer in told:
            optimizer.found_inf = bad
        try:
            yield
        finally:
            for optimizer in told:
                del optimizer.found_inf

    @torch.no_grad()
    def _restore_buffers(self, bad: torch.Tensor | None = None) -> None:
        """Give buffers the values that they had before the step: where ``bad`` is not 0, or in any case."""
        for buffer, before in zip(self._buffers, self._before, strict=False):
            buffer.copy_(before if bad is None else torch.where(bad != 0, before, buffer))

    def _send(self, step: int, flags: torch.Tensor, cursors: tuple[torch.Tensor, torch.Tensor]) -> None:
        if flags.device.type != "cuda":
            self._unread = _Unread(step, flags, None, cursors)
            return
        there = torch.empty(2, pin_memory=True).copy_(flags, non_blocking=True)
        event_class: Any = torch.cuda.Event
        written = event_class()
        written.record()
        self._unread = _Unread(step, there, written, cursors)

    def _read(
        self, step: int, flags: torch.Tensor, cursors: tuple[torch.Tensor, torch.Tensor], loss: float | None
    ) -> None:
        """Act on the flags of a step, which all ranks have alike."""
        nonfinite, spike = (bool(flag) for flag in flags.tolist())
        self.left_out_last = nonfinite or spike
        if not self.left_out_last:
            if step > self._furthest:
                self._in_a_row = 0
            return
        reason = "the gradient norm is not finite (NaN or infinite)"
        if not nonfinite:
            assert loss is not None
            reason = f"the loss is {loss:.4g}, and {self._spikes.usual:.4g} in the median of recent steps"
        error = TrainingError(
            f"step {step}: {reason}; no weight was changed by it",
            hint=f'{CURE}; or leave such steps out: fault.nonfinite, fault.spike = "skip" or "rollback"',
        )
        policy = self._settings.nonfinite if nonfinite else self._settings.spike
        self._leave_out(_Bad(step=step, policy=policy, reason=reason, error=error), cursors)

    def _leave_out(self, bad: _Bad, cursors: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Do what the policy says about a bad step; all ranks call it alike.

        :raises TrainingError: where the run is to end.
        """
        if bad.policy == "abort":
            raise bad.error
        self._in_a_row += 1
        self._furthest = max(self._furthest, bad.step) if bad.policy == "rollback" else self._furthest
        if self._in_a_row > self._settings.bad_steps_in_a_row:
            raise TrainingError(
                f"step {bad.step}: {bad.reason}, after {self._in_a_row - 1} bad steps "
                f"(fault.bad_steps_in_a_row){bad.effect}",
                hint=bad.cure,
            )
        if bad.policy == "rollback":
            self.go_back, self.good_before = True, bad.step
            self.why = f"step {bad.step}: {bad.reason}"
            if self._rank == 0:
                log.warning(
                    "step %d: %s: going back to the last good step%s", bad.step, bad.reason, bad.details
                )
            return
        if not self._on_device:
            self._restore_buffers()
        before, after = (whole_cursor(cursor, self._readers) for cursor in cursors)
        self._record(bad.step, f"{bad.reason}: skipped{bad.details}", before, after)

    def _record(self, step: int, what: str, before: torch.Tensor, after: torch.Tensor) -> None:
        """Log what is left out, row by row: where each was before and after it.

        :param before, after: (global_batch_size, cursor width).
        """
        if self._rank != 0:
            return
        log.warning("step %d: %s (rows: %s)", step, what, self._path)
        rows = {
            str(row): {"from": one.tolist(), "to": other.tolist()}
            for row, (one, other) in enumerate(zip(before, after, strict=True))
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, {"step": step, "what": what, "rows": rows})
        except OSError as error:
            log.warning("step %d: cannot write '%s': %s", step, self._path, reason_of(error))
